"""Lengths of the rows of each table in tokens, from a few of them: what memory and time are estimated from."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean, pstdev

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import TABLES, Data
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.memory import Lengths
from gpt2_rlhf.rows import sources
from gpt2_rlhf.rows.cleaning import HELD_OUT_SHARE
from gpt2_rlhf.rows.sources import RawRow
from gpt2_rlhf.rows.transcripts import Unusable, pair

_READ = 300  # rows of a table, or of the source
_OF_LIMITS = 0.4  # lengths over the limits, where no row can be read; those of Anthropic/hh-rlhf are about as long


def of_tables(directory: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Lengths]:
    """Return the lengths of the tables that the data stage wrote into the directory."""
    found = {}
    for path in directory.glob("*.parquet"):
        table = pq.ParquetFile(path)
        texts = next(table.iter_batches(_READ, columns=["prompt", "chosen", "rejected"])).to_pydict()
        found[path.stem] = _lengths(table.metadata.num_rows, list(texts.values()), tokenizer)
    return found


def expected(data: Data, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Lengths], float | None]:
    """Return what the tables will be like, by the source's first rows, and about how many seconds making them takes.

    Nothing is downloaded for it: of rows that are not here, lengths follow from the limits, and the seconds are None.

    Raises:
        UserError: all rows were read, and none can be used.
    """
    started = time.perf_counter()
    few = dataclasses.replace(data, train_pairs=_READ, test_pairs=1) if sources.is_embedded(data) else data
    first = list(islice(sources.read(few), _READ)) if sources.is_here(data) else []
    texts = list(_usable(first, tokenizer))
    if 0 < len(first) < _READ and not texts:
        raise UserError(f"data: {sources.describe(data)}: none of {len(first)} rows can be used; `make data` says why")
    if texts:
        whole = _lengths(0, list(zip(*texts, strict=True)), tokenizer, data.max_prompt_tokens)
    else:
        prompt, answer = _OF_LIMITS * data.max_prompt_tokens, _OF_LIMITS * data.max_answer_tokens
        longest = data.max_prompt_tokens + data.max_answer_tokens
        whole = Lengths(0, prompt, answer, longest, spread=(prompt + answer) / 2)
    seconds = (time.perf_counter() - started) / _READ
    if not texts or sources.is_embedded(data):
        train, test = data.train_pairs or 0, data.test_pairs or 0
    else:
        splits = Counter(row.split for row in sources.read(data))
        train = splits["train"] + round((1 - HELD_OUT_SHARE) * splits["unsplit"])
        test = splits.total() - train
    shares = data.shares if data.disjoint else dict.fromkeys(TABLES, 1.0)
    rows = {name: round(share * min(train, data.train_pairs or train)) for name, share in shares.items()}
    rows["test"] = min(test, data.test_pairs or test)
    tables = {name: dataclasses.replace(whole, rows=count) for name, count in rows.items()}
    return tables, seconds * (train + test) if texts else None


def _usable(rows: Iterable[RawRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, str]]:
    """Yield prompt, chosen and rejected answer of the rows that can be used; no prompt is cut yet."""
    for raw in rows:
        with contextlib.suppress(Unusable):
            row = pair(raw.values, raw.subset, raw.name)
            if tokens.refusal(tokenizer, row.prompt) is None:
                yield row.prompt, row.chosen, row.rejected


def _lengths(
    rows: int,
    columns: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    most_prompt_tokens: int | None = None,
) -> Lengths:
    prompts = [min(count, most_prompt_tokens or count) for count in tokens.count_prompts(tokenizer, columns[0])]
    answers = [tokens.count_answers(tokenizer, column) for column in columns[1:]]
    sums = [prompt + answer + 1 for of_kind in answers for prompt, answer in zip(prompts, of_kind, strict=True)]
    return Lengths(rows, mean(prompts), mean(map(mean, answers)) + 1, max(sums), pstdev(sums))
