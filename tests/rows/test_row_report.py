from typing import Any

import pytest

from gpt2_rlhf.rows import row_report
from gpt2_rlhf.rows.cleaning import clean
from gpt2_rlhf.rows.dividing import divide
from helpers.pairs import PAIRS, TEST, WORDS, asking, questions, raw, with_settings


def test_lengths_and_the_score_of_length_alone_are_reported_per_side() -> None:
    rows = [
        raw("a b", "1 2 3", "1", "train", 1),  # longer wins
        raw("a b c", "1 2", "1", "train", 2),  # longer wins
        raw("a b c d", "1", "1 2", "train", 3),  # shorter wins
        raw("a b c d e", "1 2", "2 1", "train", 4),  # a tie counts half
        *TEST,
    ]
    cleaned = clean(PAIRS, rows, WORDS)
    divided = divide(cleaned.train.kept, cleaned.test.kept, with_settings(disjoint=False))
    report = row_report.make(PAIRS, cleaned, {name: [row.pair for row in rows] for name, rows in divided.items()})
    # the markers Human: and Assistant: are two words more in each prompt
    assert report["train"]["tokens"] == {
        "prompt": {"median": 5, "p95": 7, "max": 7},
        "chosen": {"median": 2, "p95": 3, "max": 3},
        "rejected": {"median": 1, "p95": 2, "max": 2},
    }
    share = report["train"]["longer_answer_wins"]
    assert share["mean"] == 2.5 / 4
    assert share["low"] < 2.5 / 4 < share["high"]
    assert report["subsets"] == {"mine": {"train": 4, "test": 1}}
    assert report["tables"]["sft"] == {"pairs": 4, "prompts": 4}


def side(**changes: Any) -> dict[str, Any]:
    spread = {"median": 3, "p95": 8, "max": 9}
    return {
        "read": 20,
        "dropped": {},
        "kept": 20,
        "other_markers": [],
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
        "prompts_end_alike": None,
        "not_read": [],
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
    text = row_report.text(report)
    assert cells(text, "- empty answer") == ["2", "1", "train.jsonl:3,", "train.jsonl:5,", "test.jsonl:8"]
    assert cells(text, "- answer too long")[:2] == ["12", "0"]
    assert cells(text, "kept") == ["6", "19"]
    assert cells(text, "  of these with turns cut") == ["4", "0"]


def test_the_report_names_ten_rows_and_counts_the_rest(report: dict[str, Any]) -> None:
    names = cells(row_report.text(report), "- answer too long")[2:]
    assert " ".join(names).startswith("train.jsonl:20, train.jsonl:21")
    assert " ".join(names).endswith("train.jsonl:29, and 2 more")


def test_the_report_gives_the_score_of_length_alone_with_its_interval(report: dict[str, Any]) -> None:
    assert "longer answer wins, 95 %" in row_report.text(report)
    assert "0.500 [0.250, 0.750]" in row_report.text(report)


def test_held_out_prompts_are_mentioned_if_there_are_any(report: dict[str, Any]) -> None:
    assert "held out" not in row_report.text(report)
    assert "5 prompts were held out as the test set" in row_report.text({**report, "held_out_prompts": 5})


def test_rows_whose_markers_were_replaced_are_counted_and_named() -> None:
    rows = [*asking("Human: One? Assistant:", "Two?", "User: Three?\nAssistant:", "Q: Four?\n\nA:"), *TEST]
    for number, chosen in enumerate(("User: Five?\nAssistant: Yes.", "\n\nHuman: Six?\n\nAssistant: Yes."), 5):
        rows.append(raw("", chosen, chosen.replace("Yes", "No"), "train", number))
        del rows[-1].values["prompt"]
    report = row_report.make(PAIRS, clean(PAIRS, rows, WORDS), {})
    names = [f"train.jsonl:{number}" for number in (1, 3, 4, 5)]
    assert report["train"]["other_markers"] == names
    assert row_report.counts(report)["train"]["other_markers"] == 4
    assert cells(row_report.text(report), "  with markers replaced") == ["4", "0", *", ".join(names).split()]


def test_files_that_were_not_read_are_named_if_there_are_any(report: dict[str, Any]) -> None:
    assert "not read" not in row_report.text(report)
    assert "files not read: a.csv, b.csv" in row_report.text({**report, "not_read": ["a.csv", "b.csv"]})


def test_a_name_out_of_the_data_cannot_control_the_terminal(report: dict[str, Any]) -> None:
    text = row_report.text({**report, "subsets": {"\x1b[2Jhelp\n": {"train": 6, "test": 19}}, "source": "\x9b1m.csv"})
    assert not {"\x1b", "\x9b"} & set(text)
    assert cells(text, "  of these \\x1b[2Jhelp\\n") == ["6", "19"]


@pytest.mark.parametrize(
    ("end", "is_marker"), [("<|im_start|>assistant", True), ("[/INST]", True), ("Output:", True), ("please?", False)]
)
def test_a_marker_that_most_prompts_end_with_is_mentioned(end: str, is_marker: bool) -> None:
    rows = [*asking(*(f"{question} {end}" for question in questions(3)), "Bread?"), *TEST]
    report = row_report.make(PAIRS, clean(PAIRS, rows, WORDS), {})
    assert (f"3 of 4 training prompts end with {end!r}" in row_report.text(report)) == is_marker
