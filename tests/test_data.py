import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_rlhf import data
from gpt2_rlhf.models import loading
from gpt2_rlhf.rows import sources
from gpt2_rlhf.rows.tables import load
from gpt2_rlhf.store.stage import Stage
from helpers import tiny
from helpers.pairs import PAIRS, TEST, WORDS, questions, raw, with_settings, write_warts


def test_limits_on_pairs_leave_the_report_on_the_source_unchanged(tmp_path: Path) -> None:
    source = str(write_warts(tmp_path))
    reports = [
        data.prepare(settings, sources.read(settings), WORDS)[1]
        for settings in (with_settings(path=source), with_settings(path=source, train_pairs=5, test_pairs=1))
    ]
    assert reports[0]["train"] == reports[1]["train"]
    assert [sum(report["tables"][name]["pairs"] for name in ("sft", "reward", "ppo")) for report in reports] == [11, 5]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any]]:
    """The directory of a data stage that ran, and its metrics."""
    tokenizer = tiny.tiny_tokenizer()
    monkeypatch.setattr(loading, "load_base_tokenizer", lambda model, template: tokenizer)
    directory = tmp_path / "stage"
    directory.mkdir()
    source = str(write_warts(tmp_path))
    (Path(source) / "notes.jsonl").touch()
    settings: Any = SimpleNamespace(
        model=None, data=with_settings(path=source, max_prompt_tokens=600, max_answer_tokens=100)
    )
    return directory, data.run(settings, Stage("data", directory, {}, {})).metrics


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
    assert metrics["tables"] == report["tables"]


def test_the_report_names_the_files_that_are_not_read(prepared: tuple[Path, dict[str, Any]]) -> None:
    assert prepared[1]["not_read"] == ["notes.jsonl"]


def test_the_known_probability_survives_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tiny_tokenizer()
    monkeypatch.setattr(loading, "load_base_tokenizer", lambda model, template: tokenizer)
    rows = [raw(prompt, "Yes.", "No.", "train", 1, chosen_probability=0.75) for prompt in questions(5)]
    monkeypatch.setattr(sources, "read", lambda _: iter([*rows, *TEST]))
    monkeypatch.setattr(sources, "not_read", lambda _: [])
    settings: Any = SimpleNamespace(model=None, data=PAIRS)
    data.run(settings, Stage("data", tmp_path, {}, {}))
    assert {row["chosen_probability"] for row in load(tmp_path, "sft")} == {0.75}
