"""Read one file of rows, whatever its format, with the number that names each row in the report.

A bad line counts as a row that cannot be used. A file that cannot be read to its end is an error, since a model trained
on half of a data set looks like any other.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")


def ending(name: str) -> str | None:
    """Return the known ending of the file's name, or None."""
    return next((known for known in ENDINGS if name.endswith(known)), None)


def check_first_row(path: Path) -> None:
    """Refuse a file whose first row cannot be read or has other columns.

    Raises:
        UserError: the file is empty, unreadable, or without the columns chosen and rejected.
    """
    first = next(iter(rows(path)), None)
    if first is None:
        raise UserError(f"{path}: has no rows; expected preference pairs")
    number, values = first
    if values is None:
        expected = "as many fields as the header has" if path.suffix == ".csv" else "valid JSON: one object a line"
        raise UserError(f"{path}:{number}: cannot be read as a row; expected {expected}")
    columns = [str(key) for key in values] if isinstance(values, dict) else []
    if not {"chosen", "rejected"} <= set(columns):
        found = f"the columns {', '.join(columns)}" if columns else f"a {type(values).__name__} for a row"
        raise UserError(
            f"{path}: has {found}; expected chosen and rejected (HH transcripts) or prompt, chosen and rejected; "
            "rename its columns or choose another file"
        )


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row with its number, from 1 (in JSON lines, the line's); None stands for a line that is not a row.

    Raises:
        UserError: the file cannot be read to its end.
    """
    read_rows = {".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    try:
        yield from read_rows[ending(path.name) or ""](path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: is cut short or not gzip ({error}); download the file again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 {path.suffix} ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as stream:
        is_list = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:  # many tools write JSON lines with this ending
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); expected a list of objects") from error
    yield from enumerate(rows, 1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    with path.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), 1):
            has_fields_of_header = None not in row and None not in row.values()
            yield number, row if has_fields_of_header else None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            batches = table.iter_batches(batch_size=1000)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: is not a parquet file, or is cut short ({error}); download the file again") from error
