from typing import Any

import pytest

from gpt2_rlhf.rows import transcripts
from gpt2_rlhf.rows.transcripts import Pair, Unusable, fit_prompts, pair

ASKED = "\n\nHuman: How do I bake bread?\n\nAssistant:"
TALK = "\n\nHuman: Hello.\n\nAssistant: Hi!\n\nHuman: How do I bake bread?\n\nAssistant:"


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def texts(**columns: Any) -> tuple[str, str, str]:
    made = pair(columns, "", "pairs.jsonl:1")
    return made.prompt, made.chosen, made.rejected


def reason(values: Any) -> str:
    with pytest.raises(Unusable) as refused:
        pair(values, "", "pairs.jsonl:1")
    return str(refused.value)


def test_a_pair_of_transcripts_splits_at_the_last_assistant_turn() -> None:
    made = pair({"chosen": f"{TALK} In an oven.", "rejected": f"{TALK} No idea."}, "helpful-base", "train.jsonl.gz:7")
    assert made == Pair(TALK, " In an oven.", " No idea.", "helpful-base", "train.jsonl.gz:7", None)


def test_answers_lose_their_outer_space_and_start_with_one() -> None:
    assert texts(chosen=f"{ASKED}\n  In an oven.\n", rejected=f"{ASKED}No idea.") == (
        ASKED,
        " In an oven.",
        " No idea.",
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "How do I bake bread?",
        "  How do I bake bread?\n",
        "\n\nHuman: How do I bake bread?",
        "Human: How do I bake bread?\n\nAssistant: ",
        ASKED,
        messages(("user", "How do I bake bread?")),
    ],
)
def test_a_prompt_column_of_any_form_becomes_a_transcript_awaiting_the_assistant(prompt: Any) -> None:
    assert texts(prompt=prompt, chosen="In an oven.", rejected="No idea.") == (ASKED, " In an oven.", " No idea.")


def test_a_transcript_as_prompt_keeps_all_its_turns() -> None:
    assert texts(prompt=TALK, chosen="In an oven.", rejected="No idea.")[0] == TALK


def test_messages_become_the_same_transcript_as_text() -> None:
    talk = [("user", "Hello."), ("assistant", "Hi!"), ("user", "How do I bake bread?")]
    implicit = texts(
        chosen=messages(*talk, ("assistant", "In an oven.")), rejected=messages(*talk, ("assistant", "No idea."))
    )
    explicit = texts(
        prompt=messages(*talk),
        chosen=messages(("assistant", "In an oven.")),
        rejected=messages(("assistant", "No idea.")),
    )
    assert implicit == explicit == (TALK, " In an oven.", " No idea.")


def test_answers_that_repeat_the_prompt_give_the_same_pair() -> None:
    whole = messages(("user", "How do I bake bread?"), ("assistant", "In an oven."))
    assert texts(prompt="How do I bake bread?", chosen=whole, rejected=f"{ASKED} No idea.") == (
        ASKED,
        " In an oven.",
        " No idea.",
    )


def test_a_system_message_that_only_the_answers_have_stays_before_the_prompt() -> None:
    turns = [("system", "Be brief."), ("user", "How do I bake bread?")]
    prompt, *_ = texts(
        prompt="How do I bake bread?",
        chosen=messages(*turns, ("assistant", "In an oven.")),
        rejected=messages(*turns, ("assistant", "No idea.")),
    )
    assert prompt == f"\n\nSystem: Be brief.{ASKED}"


def test_windows_line_ends_read_as_plain_ones() -> None:
    chosen, rejected = (f"{ASKED} {answer}".replace("\n", "\r\n") for answer in ("In an oven.", "No idea."))
    assert texts(chosen=chosen, rejected=rejected) == (ASKED, " In an oven.", " No idea.")


def test_a_subset_column_wins_over_the_folder() -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert pair({**row, "subset": "harmless"}, "folder", "r").subset == "harmless"
    assert pair({**row, "subset": None}, "folder", "r").subset == "folder"


@pytest.mark.parametrize(("given", "known"), [(0.25, 0.25), ("0.25", 0.25), (None, None), ("", None)])
def test_the_probability_that_chosen_wins_is_kept_where_known(given: Any, known: float | None) -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen_probability": given}
    assert pair(row, "", "r").chosen_probability == known


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        (f"{ASKED} Yes.", f"{TALK} No.", transcripts.PROMPTS_DIFFER),
        (f"{ASKED} ", f"{ASKED} No.", transcripts.EMPTY),
        (f"{ASKED} Yes.", f"{ASKED}\n", transcripts.EMPTY),
        (f"{ASKED} Yes.", f"{ASKED}  Yes.\n", transcripts.IDENTICAL),
        ("\n\nHuman: Hello?", f"{ASKED} No.", transcripts.NO_ASSISTANT),
        (f"{ASKED} Yes.\n\nHuman: Thanks", f"{ASKED} No.", transcripts.NO_ASSISTANT),
        ("Yes.", "No.", transcripts.NO_ASSISTANT),
        (messages(("user", "Hi")), messages(("user", "Hi")), transcripts.NO_ASSISTANT),
        ([], [], transcripts.NO_ASSISTANT),
        (messages(("wizard", "Hi")), messages(("assistant", "Hi")), transcripts.MALFORMED),
        ([{"role": "assistant", "content": None}], "No.", transcripts.MALFORMED),
        (["Yes."], ["No."], transcripts.MALFORMED),
        (None, f"{ASKED} No.", transcripts.MALFORMED),
        (7, 8, transcripts.MALFORMED),
        (f"{ASKED} \ud800", f"{ASKED} No.", transcripts.MALFORMED),
    ],
)
def test_a_pair_without_a_prompt_column_is_refused_for_the_right_reason(chosen: Any, rejected: Any, why: str) -> None:
    assert reason({"chosen": chosen, "rejected": rejected}) == why


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"prompt": " ", "chosen": "Yes.", "rejected": "No."}, transcripts.MALFORMED),
        ({"prompt": [], "chosen": "Yes.", "rejected": "No."}, transcripts.MALFORMED),
        ({"prompt": messages(("assistant", "Hi")), "chosen": "Yes.", "rejected": "No."}, transcripts.MALFORMED),
        ({"prompt": "Hi", "chosen": "Yes.\n\nHuman: Thanks", "rejected": "No."}, transcripts.NO_ASSISTANT),
        ({"prompt": "Hi", "chosen": f"{ASKED} Yes.", "rejected": "No."}, transcripts.PROMPTS_DIFFER),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "chosen_probability": "?"}, transcripts.MALFORMED),
        (
            {
                "prompt": "Hi",
                "chosen": messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes.")),
                "rejected": messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "No.")),
            },
            transcripts.PROMPTS_DIFFER,
        ),
        (None, transcripts.MALFORMED),
        (["Yes.", "No."], transcripts.MALFORMED),
    ],
)
def test_a_row_with_a_prompt_column_is_refused_for_the_right_reason(columns: Any, why: str) -> None:
    assert reason(columns) == why


def count_words(batch: list[str]) -> list[int]:
    return [len(text.split()) for text in batch]


def test_a_long_prompt_loses_whole_turns_from_the_left_and_no_more_than_it_must() -> None:
    first, second, third = (
        "\n\nHuman: a b\n\nAssistant: c",
        "\n\nHuman: d\n\nAssistant: e",
        "\n\nHuman: f\n\nAssistant:",
    )
    # words: 5 + 4 + 3, of which the markers are 2 + 2 + 2
    prompt = first + second + third
    assert fit_prompts([prompt], 12, count_words) == [(prompt, 12)]
    assert fit_prompts([prompt], 11, count_words) == [(second + third, 7)]
    assert fit_prompts([prompt], 6, count_words) == [(third, 3)]


def test_the_last_human_turn_is_never_cut() -> None:
    assert fit_prompts(["\n\nHuman: a b c\n\nAssistant:", "\n\nHuman: a\n\nAssistant:"], 3, count_words) == [
        None,
        ("\n\nHuman: a\n\nAssistant:", 3),
    ]


def test_an_opening_that_is_no_human_turn_is_the_first_to_go() -> None:
    assert fit_prompts([f"\n\nSystem: Be brief.{ASKED}"], 8, count_words) == [(ASKED, 7)]
