from typing import Any

import pytest

from gpt2_rlhf.rows import transcripts
from gpt2_rlhf.rows.transcripts import Pair, Unusable, fit_prompts, pair

ASKED = "\n\nHuman: How do I bake bread?\n\nAssistant:"
TALK = "\n\nHuman: Hello.\n\nAssistant: Hi!\n\nHuman: How do I bake bread?\n\nAssistant:"


NO_PROBABILITY = "no probability in chosen_probability"
WRITTEN = "messages written as one string in chosen"
TURN_INSIDE = "a turn inside a message or an answer"


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
        (f"{ASKED} Yes.", f"{TALK} No.", "prompts differ"),
        (f"{ASKED} ", f"{ASKED} No.", "empty answer"),
        (f"{ASKED} Yes.", f"{ASKED}\n", "empty answer"),
        (f"{ASKED} Yes.", f"{ASKED}  Yes.\n", "identical answers"),
        ("\n\nHuman: Hello?", f"{ASKED} No.", transcripts.NO_ASSISTANT),
        (f"{ASKED} Yes.\n\nHuman: Thanks", f"{ASKED} No.", transcripts.NO_ASSISTANT),
        ("Yes.", "No.", "no prompt (expected a column prompt, question or instruction, or transcripts)"),
        (messages(("user", "Hi")), messages(("user", "Hi")), transcripts.NO_ASSISTANT),
        ([], [], transcripts.NO_ASSISTANT),
        (messages(("wizard", "Hi")), messages(("assistant", "Hi")), "unknown role 'wizard' in chosen"),
        ([{"role": "assistant", "content": None}], "No.", "no text in a message of chosen"),
        (["Yes."], ["No."], "a message without role in chosen"),
        (None, f"{ASKED} No.", "no text in chosen"),
        (7, 8, "no text in chosen"),
        (f"{ASKED} \ud800", f"{ASKED} No.", "half a character in chosen"),
    ],
)
def test_a_pair_without_a_prompt_column_is_refused_for_the_right_reason(chosen: Any, rejected: Any, why: str) -> None:
    assert reason({"chosen": chosen, "rejected": rejected}) == why


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"prompt": " ", "chosen": "Yes.", "rejected": "No."}, "empty prompt"),
        ({"prompt": [], "chosen": "Yes.", "rejected": "No."}, "no human turn at the end of prompt"),
        (
            {"prompt": messages(("assistant", "Hi")), "chosen": "Yes.", "rejected": "No."},
            "no human turn at the end of prompt",
        ),
        ({"prompt": "Hi", "chosen": "Yes.\n\nHuman: Thanks", "rejected": "No."}, TURN_INSIDE),
        ({"prompt": "Hi", "chosen": f"{ASKED} Yes.", "rejected": "No."}, "prompts differ"),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "chosen_probability": "?"}, NO_PROBABILITY),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "chosen_probability": 10**400}, NO_PROBABILITY),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "chosen_probability": 1.5}, NO_PROBABILITY),
        ({"prompt": "Hi", "chosen": "Yes.", "rejected": "No.", "subset": "\ud800"}, "half a character in subset"),
        ({"question": "Hi", "instruction": "Ho", "chosen": "Yes."}, "both question and instruction, and no prompt"),
        ({"prompt": "Hi", "chosen": "[{'content': 'Yes.', 'role': 'assistant'}]"}, WRITTEN),
        (
            {
                "prompt": "Hi",
                "chosen": messages(("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes.")),
                "rejected": messages(("system", "Be kind."), ("user", "Hi"), ("assistant", "No.")),
            },
            "prompts differ",
        ),
        (None, "malformed row"),
        (["Yes.", "No."], "malformed row"),
    ],
)
def test_a_row_with_a_prompt_column_is_refused_for_the_right_reason(columns: Any, why: str) -> None:
    assert reason(columns) == why


def named(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in turns]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in (text[:3], text[3:])]


QUESTION = "How do I bake bread?"
WHOLE = {name: [("human", QUESTION), ("gpt", answer)] for name, answer in [("yes", "In an oven."), ("no", "No idea.")]}


@pytest.mark.parametrize(
    "columns",
    [
        {"question": QUESTION},
        {"prompt": None, "instruction": QUESTION},
        {"instruction": QUESTION, "input": ""},
        {"chosen": named(*WHOLE["yes"]), "rejected": named(*WHOLE["no"])},
        {"prompt": QUESTION, "chosen": named(*WHOLE["yes"]), "rejected": named(*WHOLE["no"])},
        {"conversations": named(("human", QUESTION)), "chosen": named(("gpt", "In an oven."))[0]},
        {"prompt": [{"role": "User", "content": parts(QUESTION)}], "chosen": messages(("model", "In an oven."))},
        {"prompt": QUESTION, "chosen": [{"role": "assistant", "content": parts("In an oven."), "from": None}]},
        {"prompt": QUESTION, "chosen": "Assistant: In an oven."},
    ],
)
def test_common_layouts_give_the_same_pair(columns: dict[str, Any]) -> None:
    row = {"chosen": "In an oven.", "rejected": "No idea.", **columns}
    assert texts(**row) == (ASKED, " In an oven.", " No idea.")


def test_the_input_of_an_instruction_and_a_system_column_are_part_of_the_prompt() -> None:
    row = {"chosen": "Yes.", "rejected": "No."}
    prompt, *_ = texts(instruction="Is this right?", input="1 + 1 = 2", **row)
    assert prompt == "\n\nHuman: Is this right?\n\n1 + 1 = 2\n\nAssistant:"
    assert texts(system="Be brief.", question=QUESTION, **row)[0] == f"\n\nSystem: Be brief.{ASKED}"


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: How do I bake bread? Assistant:",
        "Human: How do I bake bread?\nAssistant: ",
        "Human: How do I bake bread?\nAI:",
        "USER: How do I bake bread? ASSISTANT:",
        "Question: How do I bake bread?\nAnswer:",
        "Q: How do I bake bread?\n\nA:",
        "### Instruction:\nHow do I bake bread?\n\n### Response:\n",
        "<|user|>\nHow do I bake bread?\n<|assistant|>\n",
        "\n\nHuman: How do I bake bread?\nAssistant:",
    ],
)
def test_a_prompt_with_markers_of_its_own_has_each_side_marked_once(prompt: str) -> None:
    assert texts(prompt=prompt, chosen="In an oven.", rejected="No idea.")[0] == ASKED


@pytest.mark.parametrize(
    "prompt",
    [
        "Human: Hello. Assistant: Hi! Human: How do I bake bread? Assistant:",
        "User: Hello.\nAssistant: Hi!\nUser: How do I bake bread?\nAssistant:",
    ],
)
def test_earlier_turns_with_markers_of_their_own_become_turns(prompt: str) -> None:
    assert texts(prompt=prompt, chosen="In an oven.", rejected="No idea.")[0] == TALK


def test_transcripts_with_other_markers_and_an_opening_are_read_as_transcripts() -> None:
    chosen, rejected = (f"A talk.\nUser: {QUESTION}\nAssistant: {answer}" for answer in ("In an oven.", "No idea."))
    assert texts(chosen=chosen, rejected=rejected) == (f"\n\nSystem: A talk.{ASKED}", " In an oven.", " No idea.")


@pytest.mark.parametrize("prompt", ["What is in vitamin A:", "Say: Assistant:", "Fill in.\nEnglish: bread\nFrench:"])
def test_a_prompt_without_the_marker_of_a_human_turn_is_kept_as_it_is(prompt: str) -> None:
    assert texts(prompt=prompt, chosen="C.", rejected="D.")[0] == f"\n\nHuman: {prompt}\n\nAssistant:"


def test_an_answer_may_hold_questions_and_answers() -> None:
    quiz = "A quiz.\nQuestion: Bread?\nAnswer: Yes."
    assert texts(prompt=QUESTION, chosen=quiz, rejected="No.") == (ASKED, f" {quiz}", " No.")


STRAY = "Yes.\n\nHuman: And then?\n\nAssistant: Nothing."


@pytest.mark.parametrize("prompt", [QUESTION, messages(("user", QUESTION))])
@pytest.mark.parametrize("chosen", [STRAY, messages(("assistant", STRAY)), {"role": "assistant", "content": STRAY}])
def test_a_turn_inside_an_answer_is_refused_in_every_layout(prompt: Any, chosen: Any) -> None:
    assert reason({"prompt": prompt, "chosen": chosen, "rejected": "No."}) == TURN_INSIDE


def test_a_turn_inside_a_message_of_the_prompt_is_refused() -> None:
    prompt = messages(("user", f"{QUESTION}{ASKED}"))
    assert reason({"prompt": prompt, "chosen": "Yes.", "rejected": "No."}) == TURN_INSIDE


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


def test_the_text_counted_grows_with_the_length_of_the_prompt_and_not_with_its_square() -> None:
    counted: list[str] = []

    def count(batch: list[str]) -> list[int]:
        counted.extend(batch)
        return count_words(batch)

    turn, last = "\n\nHuman: a b\n\nAssistant: c", "\n\nHuman: a b\n\nAssistant:"  # 5 and 4 words
    for turns in (100, 1000):
        prompt = turn * turns + last
        counted.clear()
        assert fit_prompts([prompt], 14, count) == [(turn * 2 + last, 14)]
        assert sum(map(len, counted)) < 4 * len(prompt)
