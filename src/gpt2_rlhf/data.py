"""Stage 0, data: turn the rows of a source into the tables sft, reward, judge, ppo and test that the stages read.

data.json, beside the tables, counts what became of every row and names those that were dropped.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.settings import Data, Settings
from gpt2_rlhf.launch import garbage
from gpt2_rlhf.models import tokens
from gpt2_rlhf.rows import row_report, sources, tables
from gpt2_rlhf.rows.cleaning import Rules, clean
from gpt2_rlhf.rows.dividing import divide
from gpt2_rlhf.rows.transcripts import Pair
from gpt2_rlhf.store.stage import Outcome, Stage


def run(settings: Settings, stage: Stage) -> Outcome:
    """Write each table as parquet, and data.json, into the stage's directory; the metrics are the counts of data.json.

    Raises:
        UserError: the source cannot be read, or leaves a stage without rows.
    """
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    raw_rows, not_read = sources.read(settings.data), sources.not_read(settings.data)
    with garbage.without_collections():
        divided, report = prepare(settings.data, raw_rows, rules(tokenizer), not_read)
    if tokens.has_chat_template(tokenizer):
        report["answers"] = {"start": tokens.before_answer(tokenizer), "end": tokenizer.eos_token}
    tables.write(stage.directory, divided)
    row_report.write(stage.directory, report)
    return Outcome(metrics=row_report.counts(report), work_s=0.0)


def rules(tokenizer: PreTrainedTokenizerBase) -> Rules:
    """Return what this tokenizer says of the texts of a row."""
    of_words = tokens.word_counter(tokenizer)
    return Rules(
        of_words or partial(tokens.count_prompts, tokenizer),
        of_words or partial(tokens.count_answers, tokenizer),
        tokens.special_tokens(tokenizer),
        partial(tokens.refusal, tokenizer),
    )


def prepare(
    data: Data,
    rows: Iterable[sources.RawRow],
    rules: Rules,
    not_read: Sequence[str] = (),
) -> tuple[dict[str, list[Pair]], dict[str, Any]]:
    """Return the rows of each table, and the report on the whole source.

    Raises:
        UserError: a stage or the test set is left without rows.
    """
    cleaned = clean(data, rows, rules)
    divided = divide(cleaned.train.kept, cleaned.test.kept, data)
    pairs = {name: [measured.pair for measured in rows] for name, rows in divided.items()}
    return pairs, row_report.make(data, cleaned, pairs, not_read)


if __name__ == "__main__":
    as_command.run("data")
