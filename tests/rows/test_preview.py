from typing import Any

import pytest

from gpt2_rlhf.rows.preview import preview, report_text
from helpers import tiny

PROMPT = "\n\nHuman: How do I bake bread?\n\nAssistant:"


def row(**changes: str) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "chosen": " Mix flour.",
        "rejected": " No idea.",
        "subset": "helpful",
        "row": "train.jsonl:1",
        **changes,
    }


def shown(**tables: list[dict[str, Any]]) -> str:
    return preview(tiny.tiny_tokenizer(), {"sft": [], "reward": [], "ppo": [], **tables})


def test_sft_marks_the_answer_and_its_eos_as_trained_and_the_prompt_as_context() -> None:
    tokenizer = tiny.tiny_tokenizer()
    context, trained = len(tokenizer(PROMPT)["input_ids"]), len(tokenizer(" Mix flour.")["input_ids"]) + 1
    assert shown(sft=[row()]).splitlines() == [
        f"sft: train.jsonl:1 (helpful), {context + trained} tokens, loss on {trained}",
        f"  context  {context:>5} | \\n\\nHuman: How do I bake bread?\\n\\nAssistant:",
        f"  trained  {trained:>5} |  Mix flour.<|endoftext|>",
    ]


def test_reward_shows_both_answers_to_their_eos() -> None:
    lines = shown(reward=[row()]).splitlines()
    assert [line.split("|", 1)[1].removeprefix(" ") for line in lines[1:]] == [
        # the space that both answers start with is a token of its own in the tiny vocabulary
        "\\n\\nHuman: How do I bake bread?\\n\\nAssistant: ",
        "Mix flour.<|endoftext|>",
        "No idea.<|endoftext|>",
    ]


def test_ppo_shows_the_prompt_without_an_answer() -> None:
    text = shown(ppo=[row()])
    assert text.endswith("Assistant:")
    assert "flour" not in text


def test_control_characters_of_the_data_do_not_reach_the_terminal() -> None:
    text = shown(sft=[row(chosen=" red \x1b[31m")])
    assert "\x1b" not in text
    assert "red \\x1b[31m<|endoftext|>" in text


def test_a_long_answer_keeps_its_end_in_view() -> None:
    text = shown(sft=[row(chosen=" word" * 500)])
    assert " [...] " in text
    assert text.endswith("word<|endoftext|>")
    assert len(text) < 1000


def test_a_few_rows_of_each_table_are_shown() -> None:
    text = shown(sft=[row(row=f"train.jsonl:{n}") for n in range(1, 10)])
    assert [f"train.jsonl:{n}" in text for n in (1, 2, 3)] == [True, True, False]


def side(**changes: Any) -> dict[str, Any]:
    spread = {"median": 3, "p95": 8, "max": 9}
    return {
        "read": 20,
        "dropped": {},
        "kept": 20,
        "turns_cut": 0,
        "tokens": {"prompt": spread, "chosen": spread, "rejected": spread},
        "longer_answer_wins": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 20},
        **changes,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    dropped = {
        "empty answer": ["train.jsonl:3", "train.jsonl:5"],
        "answer too long": [f"train.jsonl:{n}" for n in range(20, 32)],
    }
    return {
        "source": "pairs.jsonl",
        "held_out_prompts": 0,
        "max_prompt_tokens": 100,
        "max_answer_tokens": 50,
        "train": side(dropped=dropped, kept=6, turns_cut=4),
        "test": side(dropped={"empty answer": ["test.jsonl:8"]}, kept=19),
        "tables": {name: {"pairs": 2, "prompts": 1} for name in ("sft", "reward", "ppo", "test")},
        "subsets": {"helpful": {"train": 6, "test": 19}},
    }


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line.removeprefix(start).split()


def test_the_report_has_a_line_for_each_reason_with_both_counts_and_the_rows(report: dict[str, Any]) -> None:
    text = report_text(report)
    assert cells(text, "- empty answer") == ["2", "1", "train.jsonl:3,", "train.jsonl:5,", "test.jsonl:8"]
    assert cells(text, "- answer too long")[:2] == ["12", "0"]
    assert cells(text, "kept") == ["6", "19"]
    assert cells(text, "  of these with turns cut") == ["4", "0"]


def test_the_report_names_ten_rows_and_counts_the_rest(report: dict[str, Any]) -> None:
    names = cells(report_text(report), "- answer too long")[2:]
    assert " ".join(names).startswith("train.jsonl:20, train.jsonl:21")
    assert " ".join(names).endswith("train.jsonl:29, and 2 more")


def test_the_report_gives_the_score_of_length_alone_with_its_interval(report: dict[str, Any]) -> None:
    assert "longer answer wins, 95 %" in report_text(report)
    assert "0.500 [0.250, 0.750]" in report_text(report)


def test_held_out_prompts_are_mentioned_where_there_are_any(report: dict[str, Any]) -> None:
    assert "held out" not in report_text(report)
    assert "5 prompts were held out as the test set" in report_text({**report, "held_out_prompts": 5})
