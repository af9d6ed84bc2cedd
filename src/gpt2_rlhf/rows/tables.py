"""Write and read the tables of rows that the data stage makes for the other stages, as parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.transcripts import Pair

_SCHEMA = pa.schema(
    [(field.name, pa.float64() if field.name == "chosen_probability" else pa.string()) for field in fields(Pair)]
)


def write(directory: Path, tables: Mapping[str, Sequence[Pair]]) -> None:
    """Write each table as NAME.parquet into the directory."""
    for name, pairs in tables.items():
        columns = {column: [getattr(row, column) for row in pairs] for column in _SCHEMA.names}
        pq.write_table(pa.table(columns, schema=_SCHEMA), directory / f"{name}.parquet")


def load(directory: Path, split: str) -> list[dict[str, Any]]:
    """Read the rows of a table (sft, reward, judge, ppo or test) with the fields of transcripts.Pair.

    Raises:
        UserError: the directory has no such table.
    """
    path = directory / f"{split}.parquet"
    if not path.exists():
        raise UserError(f"data: there is no {path}; run `make data` with the same overrides")
    return pq.read_table(path).to_pylist()
