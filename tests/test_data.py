import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_rlhf import data
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import tokens
from gpt2_rlhf.rows import row_report, sources
from gpt2_rlhf.rows.tables import load
from gpt2_rlhf.store.stage import Stage
from helpers import tiny, tokenizers_tiny
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
    monkeypatch.setattr(tokens, "load_base_tokenizer", lambda model, template: tokenizer)
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


def test_with_a_chat_template_rows_are_counted_and_refused_as_it_renders_them(tmp_path: Path) -> None:
    template = tokenizers_tiny.LLAMA_2.replace("[INST]", "<|im_start|>")
    model = Model(str(tokenizers_tiny.write("gpt2", tmp_path / "model", template)), None, None, None)
    long = "\n\nHuman: {}\n\nAssistant: Yes.\n\nHuman: Is it new {}?"
    prompts = [
        *questions(8),
        long.format("Old? " * 40, 1),  # 8: longer than the limit
        "\n\nSystem: Be kind.\n\nHuman: Why 1?\n\nAssistant:",  # 9, 10: the template refuses them
        "\n\nHuman: Why 2?\n\nHuman: Why?",
        "Is <|im_start|> one?",  # 11: special tokens; 3 and 4 have none of the template's
        "Is </s> one?",
    ]
    rows = [{"prompt": one, "chosen": "Yes.", "rejected": "No."} for one in prompts]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps({**rows[0], "prompt": "Is it far?"}))
    tokenizer = tokens.load_base_tokenizer(model, "chat")
    limit = max(tokens.count_prompts(tokenizer, [f"\n\nHuman: {one}\n\nAssistant:" for one in questions(8)])) + 9
    given = with_settings(path=str(tmp_path), template="chat", max_prompt_tokens=limit, max_answer_tokens=9)
    settings: Any = SimpleNamespace(model=model, data=given)
    (tmp_path / "stage").mkdir()
    metrics = data.run(settings, Stage("data", tmp_path / "stage", {}, {})).metrics
    assert metrics["train"]["dropped"] == {
        "refused by the chat template: no system role": 1,
        "refused by the chat template: roles must alternate": 1,
        "special token in the text": 2,
    }
    assert (metrics["train"]["kept"], metrics["train"]["turns_cut"]) == (9, 1)
    assert metrics["answers"] == {"start": " ", "end": "</s>"}
    assert (
        "prompts are in the model's chat template; an answer ends with </s>, the EOS of all stages"
        in row_report.notices(metrics)
    )


def test_a_template_that_refuses_every_row_is_one_line() -> None:
    refusing = replace(WORDS, refusal=lambda prompt: "refused by the chat template: no")
    rows = [raw(prompt, "Yes.", "No.", "train", number) for number, prompt in enumerate(questions(3), start=1)]
    with pytest.raises(
        UserError, match=r"leaves no test rows .*|leaves no train rows of 3 read: 3 refused by the chat"
    ):
        data.prepare(PAIRS, rows, refusing)


def test_the_known_probability_survives_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.tiny_tokenizer()
    monkeypatch.setattr(tokens, "load_base_tokenizer", lambda model, template: tokenizer)
    rows = [raw(prompt, "Yes.", "No.", "train", 1, chosen_probability=0.75) for prompt in questions(5)]
    monkeypatch.setattr(sources, "read", lambda _: iter([*rows, *TEST]))
    monkeypatch.setattr(sources, "not_read", lambda _: [])
    settings: Any = SimpleNamespace(model=None, data=PAIRS)
    data.run(settings, Stage("data", tmp_path, {}, {}))
    assert {row["chosen_probability"] for row in load(tmp_path, "sft")} == {0.75}
