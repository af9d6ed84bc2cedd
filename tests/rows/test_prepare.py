import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_rlhf import data
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.models import loading
from gpt2_rlhf.rows import sources
from gpt2_rlhf.rows.prepare import STAGES, prepare
from gpt2_rlhf.rows.sources import RawRow
from gpt2_rlhf.rows.tables import load
from gpt2_rlhf.rows.transcripts import Pair
from gpt2_rlhf.store.stage import Stage
from helpers import tiny

PAIRS = Data(
    name="unused/unused",
    revision=None,
    path="pairs",
    subsets=None,
    train_pairs=None,
    test_pairs=None,
    shares={"sft": 0.3, "reward": 0.4, "judge": 0.0, "ppo": 0.3},
    disjoint=True,
    max_prompt_tokens=100,
    max_answer_tokens=50,
    seed=0,
    utility=None,
)


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def raw(prompt: str, chosen: str, rejected: str, split: sources.Split, number: int, **more: Any) -> RawRow:
    values = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
    return RawRow(values, "mine", split, f"{split}.jsonl:{number}")


def asking(*prompts: str, split: sources.Split = "train") -> list[RawRow]:
    return [raw(prompt, "Yes.", "No.", split, number) for number, prompt in enumerate(prompts, 1)]


def questions(count: int) -> list[str]:
    return [f"Question {number}?" for number in range(count)]


TEST = asking("Asked in the test alone?", split="test")


def with_settings(**changes: Any) -> Data:
    return dataclasses.replace(PAIRS, **changes)


def prompts_of(pairs: list[Pair]) -> set[str]:
    return {row.prompt for row in pairs}


@pytest.fixture
def warts(tmp_path: Path) -> Path:
    """A subset in the published layout of Anthropic/hh-rlhf with one or two rows of each kind that cannot be used."""

    def talk(*turns: str) -> str:
        return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))

    def write(split: str, rows: list[tuple[str, str]]) -> None:
        lines = [json.dumps({"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
        (tmp_path / "harmless" / f"{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))

    (tmp_path / "harmless").mkdir()
    good = [(talk(question, "Yes."), talk(question, "No.")) for question in questions(10)]
    write(
        "train",
        [
            *good,
            (talk("Is it late?", "Yes.", "Very?", "Yes."), talk("Is it late?", "No.")),  # 11: prompts differ
            (talk("Is it cold?", ""), talk("Is it cold?", "No.")),  # 12: empty
            (talk("Is it warm?", "Yes."), talk("Is it warm?", " ")),  # 13: empty
            (talk("Is it wet?", "Yes."), talk("Is it wet?", "Yes. ")),  # 14: identical
            (talk("Is it far?", "Yes."), talk("Is it far?", "No.")),  # 15: in the test set
            (talk("Is it far?", "A bit."), talk("Is it far?", "No.")),  # 16: in the test set
            (talk("Is it dry?"), talk("Is it dry?", "No.")),  # 17: no assistant turn
            (talk("Is it high?", "word " * 51), talk("Is it high?", "No.")),  # 18: answer too long
            (talk("word " * 101, "Yes."), talk("word " * 101, "No.")),  # 19: prompt too long
            (talk("old " * 99, "Oh.", "Is it new?", "Yes."), talk("old " * 99, "Oh.", "Is it new?", "No.")),  # 20: cut
        ],
    )
    write(
        "test",
        [
            (talk("Is it far?", "Yes."), talk("Is it far?", "No.")),
            (talk("Is it low?", "Yes."), talk("Was it low?", "No.")),  # 2: prompts differ
        ],
    )
    return tmp_path / "harmless"


def test_every_row_that_cannot_be_used_is_counted_and_named(warts: Path) -> None:
    settings = with_settings(path=str(warts))
    report = prepare(settings, sources.read(settings), count_words).report
    assert report["train"]["dropped"] == {
        "prompts differ": ["train.jsonl.gz:11"],
        "empty answer": ["train.jsonl.gz:12", "train.jsonl.gz:13"],
        "identical answers": ["train.jsonl.gz:14"],
        "leaked from train": ["train.jsonl.gz:15", "train.jsonl.gz:16"],
        "no assistant turn": ["train.jsonl.gz:17"],
        "answer too long": ["train.jsonl.gz:18"],
        "prompt too long": ["train.jsonl.gz:19"],
    }
    assert report["test"]["dropped"] == {"prompts differ": ["test.jsonl.gz:2"]}
    assert (report["train"]["read"], report["train"]["kept"], report["train"]["turns_cut"]) == (20, 11, 1)
    assert (report["test"]["read"], report["test"]["kept"], report["test"]["turns_cut"]) == (2, 1, 0)
    assert report["subsets"] == {"harmless": {"train": 11, "test": 1}}


def test_the_row_that_lost_its_first_turns_starts_with_a_human_turn(warts: Path) -> None:
    settings = with_settings(path=str(warts), disjoint=False)
    rows = {row.row: row for row in prepare(settings, sources.read(settings), count_words).tables["sft"]}
    assert rows["train.jsonl.gz:20"].prompt == "\n\nHuman: Is it new?\n\nAssistant:"


def test_limits_on_pairs_leave_the_report_on_the_source_alone(warts: Path) -> None:
    whole, limited = with_settings(path=str(warts)), with_settings(path=str(warts), train_pairs=5, test_pairs=1)
    reports = [prepare(settings, sources.read(settings), count_words).report for settings in (whole, limited)]
    assert reports[0]["train"] == reports[1]["train"]
    assert [sum(report["tables"][name]["pairs"] for name in ("sft", "reward", "ppo")) for report in reports] == [11, 5]


def test_prompts_that_meet_a_test_prompt_once_cut_are_leaks_too() -> None:
    last = "\n\nHuman: Is it?\n\nAssistant:"
    rows = [
        *asking(f"\n\nHuman: {'old ' * 100}\n\nAssistant: Oh.{last}", *questions(3)),
        *asking(f"\n\nHuman: {'new ' * 100}\n\nAssistant: Ah.{last}", split="test"),
    ]
    report = prepare(PAIRS, rows, count_words).report
    assert report["train"]["dropped"] == {"leaked from train once cut": ["train.jsonl:1"]}
    assert report["train"]["kept"] == 3


def test_a_special_token_in_the_text_is_a_reason_to_drop() -> None:
    rows = [*asking(*questions(5)), raw("Bread?", "Yes.<|end|> And", "No.", "train", 6), *TEST]
    report = prepare(PAIRS, rows, count_words, ["<|end|>"]).report
    assert report["train"]["dropped"] == {"special token in the text": ["train.jsonl:6"]}


def test_a_limit_counts_the_tokens_of_the_text_and_is_itself_allowed() -> None:
    rows = [*asking(*questions(3)), raw("Bread?", "a b c", "d", "train", 4), raw("Tea?", "a b", "d", "train", 5), *TEST]
    report = prepare(with_settings(max_answer_tokens=2), rows, count_words).report
    assert report["train"]["dropped"] == {"answer too long": ["train.jsonl:4"]}


def test_stages_get_their_shares_of_the_prompts_and_never_one_prompt_twice() -> None:
    twice = questions(100) * 2
    settings = with_settings(shares={"sft": 0.3, "reward": 0.2, "judge": 0.2, "ppo": 0.3})
    tables = prepare(settings, [*asking(*twice), *TEST], count_words).tables
    prompts = {name: prompts_of(tables[name]) for name in STAGES}
    assert {name: len(found) for name, found in prompts.items()} == {"sft": 30, "reward": 20, "judge": 20, "ppo": 30}
    assert len(set().union(*prompts.values())) == 100
    assert {name: len(tables[name]) for name in STAGES} == {"sft": 60, "reward": 40, "judge": 40, "ppo": 30}


def test_shares_below_one_leave_prompts_unused_and_a_share_of_0_makes_no_table() -> None:
    settings = with_settings(shares={"sft": 0.1, "reward": 0.2, "judge": 0.0, "ppo": 0.1})
    tables = prepare(settings, [*asking(*questions(50)), *TEST], count_words).tables
    assert {name: len(rows) for name, rows in tables.items()} == {"sft": 5, "reward": 10, "ppo": 5, "test": 1}


def test_without_disjoint_prompts_every_stage_gets_all_pairs_and_ppo_each_prompt_once() -> None:
    rows = [*asking(*questions(10) * 2), *TEST]
    tables = prepare(with_settings(disjoint=False), rows, count_words).tables
    assert [len(tables[name]) for name in ("sft", "reward", "ppo")] == [20, 20, 10]
    assert "judge" not in tables
    assert prompts_of(tables["ppo"]) == prompts_of(tables["sft"])


@pytest.mark.parametrize("limit", [1, 7, 20, 21])
def test_a_limit_on_training_pairs_is_met_to_the_pair(limit: int) -> None:
    rows = [*asking(*questions(10) * 2), *TEST]
    tables = prepare(with_settings(disjoint=False, train_pairs=limit), rows, count_words).tables
    assert len(tables["sft"]) == min(limit, 20)


def test_a_limit_on_test_pairs_is_met_to_the_pair() -> None:
    rows = [*asking(*questions(10)), *asking(*(f"Test {n}?" for n in range(10)), split="test")]
    assert len(prepare(with_settings(test_pairs=4), rows, count_words).tables["test"]) == 4


def test_the_seed_decides_the_division() -> None:
    rows = [*asking(*questions(100)), *TEST]
    first, again, other = (prepare(with_settings(seed=seed), rows, count_words).tables for seed in (0, 0, 1))
    assert first == again
    assert prompts_of(first["sft"]) != prompts_of(other["sft"])


def test_without_a_test_file_a_tenth_of_the_prompts_is_held_out_whatever_seed_and_order() -> None:
    rows = asking(*questions(95) * 2, split="unsplit")
    runs = [
        prepare(with_settings(seed=0), rows, count_words),
        prepare(with_settings(seed=1), rows[::-1], count_words),
    ]
    held_out = [prompts_of(run.tables["test"]) for run in runs]
    wrapped = [f"\n\nHuman: {question}\n\nAssistant:" for question in questions(95)]
    by_hash = sorted(wrapped, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    assert held_out[0] == held_out[1] == set(by_hash[:10])  # a tenth of 95, rounded up
    assert not held_out[0] & set().union(*(prompts_of(runs[0].tables[name]) for name in ("sft", "reward", "ppo")))
    report = runs[0].report
    assert (report["held_out_prompts"], report["train"]["read"], report["test"]["read"]) == (10, 170, 20)


def test_lengths_and_the_score_of_length_alone_are_reported_per_side() -> None:
    rows = [
        raw("a b", "1 2 3", "1", "train", 1),  # longer wins
        raw("a b c", "1 2", "1", "train", 2),  # longer wins
        raw("a b c d", "1", "1 2", "train", 3),  # shorter wins
        raw("a b c d e", "1 2", "2 1", "train", 4),  # a tie counts half
        *TEST,
    ]
    train = prepare(PAIRS, rows, count_words).report["train"]
    # the markers Human: and Assistant: are two words more in each prompt
    assert train["tokens"]["prompt"] == {"median": 5, "p95": 7, "max": 7}
    assert train["tokens"]["chosen"] == {"median": 2, "p95": 3, "max": 3}
    assert train["tokens"]["rejected"] == {"median": 1, "p95": 2, "max": 2}
    assert train["longer_answer_wins"]["mean"] == 2.5 / 4
    assert train["longer_answer_wins"]["low"] < 2.5 / 4 < train["longer_answer_wins"]["high"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*asking(*questions(3))], r"pairs leaves no test rows of 0 read"),
        ([*TEST], r"pairs leaves no train rows of 0 read"),
        (
            [raw("Hi", "", "No.", "train", 4), raw("Hi", "No.", "No.", "train", 7), *TEST],
            r"no train rows of 2 read: 1 empty answer \(train\.jsonl:4\), 1 identical answers \(train\.jsonl:7\)",
        ),
        (
            [*asking("Bread?", "Tea?"), *TEST],
            r"2 training prompts leave none for reward \(share 0\.4\).*data\.disjoint=false",
        ),
    ],
)
def test_a_stage_left_without_rows_is_refused(rows: list[RawRow], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        prepare(PAIRS, rows, count_words)
    assert "\n" not in str(refused.value)


@pytest.fixture
def prepared(tmp_path: Path, warts: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """The directory of a data stage that ran, and its metrics."""
    tokenizer = tiny.tiny_tokenizer()
    monkeypatch.setattr(loading, "load_base_tokenizer", lambda model: tokenizer)
    directory = tmp_path / "stage"
    directory.mkdir()
    settings: Any = SimpleNamespace(
        model=None, data=with_settings(path=str(warts), max_prompt_tokens=600, max_answer_tokens=100)
    )
    outcome = data.run(settings, Stage("data", directory, {}, {}))
    return directory, outcome.metrics


def test_a_stage_reads_back_the_tables_that_were_written(prepared: tuple[Path, dict[str, Any]]) -> None:
    directory, metrics = prepared
    for name in ("sft", "reward", "ppo", "test"):
        assert len(load(directory, name)) == metrics["tables"][name]["pairs"]
    assert load(directory, "test") == [
        {
            "prompt": "\n\nHuman: Is it far?\n\nAssistant:",
            "chosen": " Yes.",
            "rejected": " No.",
            "subset": "harmless",
            "row": "test.jsonl.gz:1",
            "chosen_probability": None,
        }
    ]


def test_the_metrics_count_what_the_report_names(prepared: tuple[Path, dict[str, Any]]) -> None:
    directory, metrics = prepared
    report = json.loads((directory / "data.json").read_text(encoding="utf-8"))
    assert report["train"]["dropped"]["empty answer"] == ["train.jsonl.gz:12", "train.jsonl.gz:13"]
    assert metrics["train"]["dropped"]["empty answer"] == 2
    assert data.counts(report) == metrics


def test_a_table_that_was_not_written_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*sft\.parquet; run `make data` with the same overrides"):
        load(tmp_path, "sft")


def test_the_known_probability_survives_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tiny_tokenizer()
    monkeypatch.setattr(loading, "load_base_tokenizer", lambda model: tokenizer)
    rows = [raw(prompt, "Yes.", "No.", "train", 1, chosen_probability=0.75) for prompt in questions(5)]
    monkeypatch.setattr(sources, "read", lambda _: iter([*rows, *TEST]))
    settings: Any = SimpleNamespace(model=None, data=PAIRS)
    data.run(settings, Stage("data", tmp_path, {}, {}))
    assert {row["chosen_probability"] for row in load(tmp_path, "sft")} == {0.75}
