"""Stage 0, data: turn the rows of a source into the tables sft, reward, judge, ppo and test that the stages read.

data.json, beside the tables, counts what became of every row and names those that were dropped.
"""

import json
import runpy
import sys
from typing import Any

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.models import loading
from gpt2_rlhf.rows import sources, tables
from gpt2_rlhf.rows.prepare import prepare
from gpt2_rlhf.store.stage import Outcome, Stage


def run(settings: Settings, stage: Stage) -> Outcome:
    """Write each table as parquet, and data.json, into the stage's directory; metrics are its counts.

    Raises:
        UserError: the source cannot be read, or leaves a stage without rows.
    """
    tokenizer = loading.load_base_tokenizer(settings.model)

    def count_tokens(texts: list[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), 1000):
            encoded = tokenizer(texts[start : start + 1000], return_attention_mask=False, verbose=False)
            counts += [len(ids) for ids in encoded["input_ids"]]  # type: ignore[arg-type]
        return counts

    rows = sources.read(settings.data)
    prepared = prepare(settings.data, rows, count_tokens, tokenizer.all_special_tokens)
    tables.write(stage.directory, prepared.tables)
    report = json.dumps(prepared.report, indent=1, ensure_ascii=False)
    (stage.directory / "data.json").write_text(report, encoding="utf-8")
    return Outcome(metrics=counts(prepared.report), work_s=0.0)


def counts(report: dict[str, Any]) -> dict[str, Any]:
    """The report with numbers of rows in place of their names."""
    numbers = dict(report)
    for side in ("train", "test"):
        dropped = {reason: len(names) for reason, names in report[side]["dropped"].items()}
        numbers[side] = {**report[side], "dropped": dropped}
    return numbers


if __name__ == "__main__":  # `python -m gpt2_rlhf.data` is `python -m gpt2_rlhf data`
    sys.argv[1:1] = ["data"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
