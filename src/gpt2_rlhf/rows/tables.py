"""Write and read the tables of rows that the data stage makes for the other stages, as parquet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch.progress_line import counted
from gpt2_rlhf.models.tokens import Columns
from gpt2_rlhf.rows.transcripts import Pair

_ROWS_AT_ONCE = 1000

_SCHEMA = pa.schema(
    [(field.name, pa.float64() if field.name == "chosen_probability" else pa.string()) for field in fields(Pair)]
)


def write(directory: Path, tables: Mapping[str, Sequence[Pair]]) -> None:
    """Write each table as NAME.parquet into the directory."""
    for name, pairs in tables.items():
        columns = {column: [getattr(row, column) for row in pairs] for column in _SCHEMA.names}
        pq.write_table(pa.table(columns, schema=_SCHEMA), directory / f"{name}.parquet")


def load(directory: Path, name: str, most: int | None = None) -> list[dict[str, Any]]:
    """Read the rows of a table (sft, reward, judge, ppo or test) with the fields of transcripts.Pair.

    most: read no more than the first rows of the table; its order was drawn, so they are a sample of all subsets.

    Raises:
        UserError: the directory has no such table.
    """
    with _open(directory, name) as file:
        return file.read().slice(0, most).to_pylist()


def token_columns(directory: Path, name: str, encode: Callable[[list[dict[str, Any]]], list[Columns]]) -> Dataset:
    """Return the token columns of a table for a trainer; its texts are in memory a thousand rows at a time.

    Raises:
        UserError: the directory has no such table.
    """
    with _open(directory, name) as file:
        batches = counted("rows to tokens", file.iter_batches(_ROWS_AT_ONCE), file.metadata.num_rows, len)
        return concatenate_datasets([Dataset.from_list(encode(batch.to_pylist())) for batch in batches])


def longest_tokens(rows: Dataset) -> int:
    """Return the number of tokens of the longest list in any column."""
    columns = [rows.data.column(name).combine_chunks() for name in rows.column_names]
    return max(int(np.diff(column.offsets).max()) for column in columns)


def prompts(directory: Path, name: str) -> list[str]:
    """Return the prompts of a table, as transcripts."""
    with _open(directory, name) as file:
        return file.read(["prompt"])["prompt"].to_pylist()


def size(directory: Path, name: str) -> int:
    """Return the number of rows of a table."""
    with _open(directory, name) as file:
        return file.metadata.num_rows


def _open(directory: Path, name: str) -> pq.ParquetFile:
    path = directory / f"{name}.parquet"
    if not path.exists():
        raise UserError(f"data: there is no {path}; run `make data` with the same overrides")
    return pq.ParquetFile(path)
