import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows import sources
from gpt2_rlhf.rows.cleaning import Side, clean
from gpt2_rlhf.rows.sources import RawRow
from helpers.pairs import PAIRS, TEST, WORDS, asking, questions, raw, with_settings, write_warts


def prompts_of(side: Side) -> set[str]:
    return {measured.pair.prompt for measured in side.kept}


def test_every_row_that_cannot_be_used_is_counted_and_named(tmp_path: Path) -> None:
    settings = with_settings(path=str(write_warts(tmp_path)))
    cleaned = clean(settings, sources.read(settings), WORDS)
    train, test = cleaned.train, cleaned.test
    assert train.dropped == {
        "prompts differ": ["train.jsonl.gz:11"],
        "empty answer": ["train.jsonl.gz:12", "train.jsonl.gz:13"],
        "identical answers": ["train.jsonl.gz:14"],
        "leaked from train": ["train.jsonl.gz:15", "train.jsonl.gz:16"],
        "no assistant turn": ["train.jsonl.gz:17"],
        "answer too long": ["train.jsonl.gz:18"],
        "prompt too long": ["train.jsonl.gz:19"],
    }
    assert test.dropped == {"prompts differ": ["test.jsonl.gz:2"]}
    assert (train.rows_read, len(train.kept), train.turns_cut) == (20, 11, 1)
    assert (test.rows_read, len(test.kept), test.turns_cut) == (2, 1, 0)
    assert {measured.pair.subset for measured in [*train.kept, *test.kept]} == {"harmless"}


def test_the_row_that_lost_its_first_turns_starts_with_a_human_turn(tmp_path: Path) -> None:
    settings = with_settings(path=str(write_warts(tmp_path)))
    kept = clean(settings, sources.read(settings), WORDS).train.kept
    rows = {measured.pair.row: measured.pair for measured in kept}
    assert rows["train.jsonl.gz:20"].prompt == "\n\nHuman: Is it new?\n\nAssistant:"


def test_prompts_that_equal_a_test_prompt_once_cut_are_leaks_too() -> None:
    last = "\n\nHuman: Is it?\n\nAssistant:"
    rows = [
        *asking(f"\n\nHuman: {'old ' * 100}\n\nAssistant: Oh.{last}", *questions(3)),
        *asking(f"\n\nHuman: {'new ' * 100}\n\nAssistant: Ah.{last}", split="test"),
    ]
    train = clean(PAIRS, rows, WORDS).train
    assert train.dropped == {"leaked from train once cut": ["train.jsonl:1"]}
    assert (len(train.kept), train.turns_cut) == (3, 0)


def talk(*turns: str) -> str:
    """A prompt of Human and Assistant turns in alternation."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def test_training_rows_of_a_conversation_in_the_test_set_are_dropped_at_any_depth() -> None:
    rows = [
        *asking(
            talk("How do I bake  bread?"),
            talk("How do I bake bread?", "Mix it.", "And then?"),
            talk("How do I bake bread?", "Buy it.", "Where?", "There.", "When?"),
            *questions(3),
        ),
        *asking(talk("How do I bake bread?", "Mix it.", "With what?"), split="test"),
    ]
    train = clean(PAIRS, rows, WORDS).train
    assert train.dropped == {"same conversation as test": [f"train.jsonl:{number}" for number in (1, 2, 3)]}
    assert len(train.kept) == 3


def test_a_conversation_whose_turns_were_cut_keeps_its_side() -> None:
    rows = [
        *asking(talk(f"Read {'this ' * 100}", "Yes.", "Is it long?"), *questions(3)),
        *asking(talk(f"Read {'this ' * 100}", "Yes.", "Is it old?"), split="test"),
    ]
    assert clean(PAIRS, rows, WORDS).train.dropped == {"same conversation as test": ["train.jsonl:1"]}


def test_held_out_conversations_of_an_unsplit_source_have_no_prompt_in_training() -> None:
    deeper = [talk(question, "Go on.", f"Why {question}") for question in questions(40)]
    cleaned = clean(PAIRS, asking(*questions(40), *deeper, split="unsplit"), WORDS)
    train, test = (
        {prompt.removeprefix("\n\nHuman: ").partition("?")[0] for prompt in prompts_of(side)}
        for side in (cleaned.train, cleaned.test)
    )
    assert not train & test
    assert (len(test), len(train), cleaned.held_out_prompts) == (4, 36, 8)


def test_a_special_token_in_the_text_is_a_reason_to_drop() -> None:
    rows = [*asking(*questions(5)), raw("Bread?", "Yes.<|end|> And", "No.", "train", 6), *TEST]
    train = clean(PAIRS, rows, dataclasses.replace(WORDS, special_tokens=["<|end|>"])).train
    assert train.dropped == {"special token in the text": ["train.jsonl:6"]}


def test_a_limit_counts_the_tokens_of_the_text_and_is_itself_allowed() -> None:
    rows = [*asking(*questions(3)), raw("Bread?", "a b c", "d", "train", 4), raw("Tea?", "a b", "d", "train", 5), *TEST]
    train = clean(with_settings(max_answer_tokens=2), rows, WORDS).train
    assert train.dropped == {"answer too long": ["train.jsonl:4"]}


def test_without_a_test_file_a_tenth_of_the_conversations_is_held_out_in_whatever_order() -> None:
    rows = asking(*questions(95) * 2, split="unsplit")
    cleaned, reversed_rows = (clean(PAIRS, order, WORDS) for order in (rows, rows[::-1]))
    wrapped = [f"\n\nHuman: {question}\n\nAssistant:" for question in questions(95)]
    openings = {prompt: prompt.removesuffix("\n\nAssistant:").strip() for prompt in wrapped}
    by_hash = sorted(wrapped, key=lambda prompt: hashlib.sha256(openings[prompt].encode()).hexdigest())
    held_out = set(by_hash[:10])  # a tenth of 95, rounded up
    assert prompts_of(cleaned.test) == prompts_of(reversed_rows.test) == held_out
    assert not held_out & prompts_of(cleaned.train)
    assert (cleaned.held_out_prompts, cleaned.train.rows_read, cleaned.test.rows_read) == (10, 170, 20)


def test_rows_without_a_test_file_come_after_those_of_training_files() -> None:
    rows = [*asking(*questions(20), split="unsplit"), *asking("Asked in training?"), *TEST]
    kept = clean(PAIRS, rows, WORDS).train.kept
    assert kept[0].pair.prompt == "\n\nHuman: Asked in training?\n\nAssistant:"
    assert len(kept) == 1 + 18  # a tenth of 20 prompts is held out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*asking(*questions(3))], r"pairs leaves no test rows of 3 read: all are train rows; rows of other"),
        ([*TEST], r"pairs leaves no train rows of 1 read: all are test rows; rows of other"),
        (
            [raw("Hi", "", "No.", "train", 4), raw("Hi", "No.", "No.", "train", 7), *TEST],
            r"no train rows of 3 read: 1 empty answer \(train\.jsonl:4\), 1 identical answers \(train\.jsonl:7\); "
            r"correct these rows$",
        ),
        (
            [raw("word " * 101, "Yes.", "No.", "train", 4), *TEST],
            r"1 prompt too long \(train\.jsonl:4\); raise data\.max_prompt_tokens$",
        ),
        (
            [raw("Hi", "word " * 51, "No.", "train", 4), raw("Hi", "", "No.", "train", 7), *TEST],
            r"; correct these rows and raise data\.max_answer_tokens$",
        ),
    ],
)
def test_a_side_left_without_rows_is_refused(rows: list[RawRow], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        clean(PAIRS, rows, WORDS)
    assert "\n" not in str(refused.value)


def test_a_row_that_another_file_of_its_split_holds_too_is_dropped_and_named() -> None:
    rows = [*asking(*questions(3)), *TEST]
    copies = [dataclasses.replace(row, name=f"more.{row.name}") for row in rows]
    cleaned = clean(PAIRS, [*rows, *rows, *copies], WORDS)
    assert cleaned.train.dropped == {"same row in another file": [f"more.train.jsonl:{number}" for number in (1, 2, 3)]}
    assert cleaned.test.dropped == {"same row in another file": ["more.test.jsonl:1"]}
    assert len(cleaned.train.kept) == 6  # a row that one file holds twice was compared twice


def test_an_error_while_rows_are_read_or_counted_is_raised_and_leaves_no_thread() -> None:
    def fails(texts: list[str]) -> list[int]:
        raise UserError("counting failed")

    def cut_off() -> Iterator[RawRow]:
        yield from asking(*questions(300))
        raise UserError("reading failed")

    threads = threading.active_count()
    for rows, rules, said in (
        (asking(*questions(300)), dataclasses.replace(WORDS, count_prompts=fails), "counting failed"),
        (cut_off(), WORDS, "reading failed"),
    ):
        with pytest.raises(UserError, match=said):
            clean(PAIRS, rows, rules)
    assert threading.active_count() == threads


def test_rows_keep_their_order_where_later_ones_are_counted_sooner() -> None:
    def slow_for_the_first(texts: list[str]) -> list[int]:
        time.sleep(0.2 if any("Question 0?" in text for text in texts) else 0)
        return WORDS.count_prompts(texts)

    rows = [*asking(*questions(300)), *TEST]
    kept = clean(PAIRS, rows, dataclasses.replace(WORDS, count_prompts=slow_for_the_first)).train.kept
    names = [measured.pair.row for measured in kept]
    assert names == [row.name for row in rows if row.name in set(names)]
    assert len(names) > 200
