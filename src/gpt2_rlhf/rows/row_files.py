"""Read one file of rows, whatever its format, with the number that names each row in the report.

A single bad line is a row to count; a file that cannot be read to its end is an error, for half of a data set would
train a model without a word.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv")


def ending(name: str) -> str | None:
    """Which of the known endings the file's name has."""
    return next((known for known in ENDINGS if name.endswith(known)), None)


def check_first_row(path: Path) -> None:
    """Refuse a file whose first row cannot be read or has other columns.

    Raises:
        UserError: it is empty, unreadable, or without chosen and rejected.
    """
    first = next(iter(rows(path)), None)
    if first is None:
        raise UserError(f"{path}: has no rows; wanted preference pairs")
    number, values = first
    if values is None:
        wanted = "as many fields as the header has" if path.suffix == ".csv" else "valid JSON: one object a line"
        raise UserError(f"{path}:{number}: cannot be read as a row; wanted {wanted}")
    columns = [str(key) for key in values] if isinstance(values, dict) else []
    if not {"chosen", "rejected"} <= set(columns):
        found = f"the columns {', '.join(columns)}" if columns else f"a {type(values).__name__} for a row"
        raise UserError(
            f"{path}: has {found}; wanted chosen and rejected (HH transcripts) or prompt, chosen and rejected; "
            "rename its columns or choose another file"
        )


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Each row with its number, from 1 (the line's in JSON lines); None stands for a line that is no row.

    Raises:
        UserError: the file cannot be read, or not to its end.
    """
    read_rows = {".jsonl": _json_lines, ".jsonl.gz": _json_lines, ".json": _json, ".parquet": _parquet, ".csv": _csv}
    try:
        yield from read_rows[ending(path.name) or ""](path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: is cut short or not gzip ({error}); get the file again") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 {path.suffix} ({error}); save it as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def file_sha256(path: Path) -> bytes:
    """The digest of the file's bytes.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions")


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
    if not is_list:  # many tools write JSON lines under this ending
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is not valid JSON ({error}); wanted a list of objects") from error
    yield from enumerate(rows, 1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)  # the standard 128 KiB is less than a long conversation
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
        raise UserError(f"{path}: is not a parquet file, or is cut short ({error}); get the file again") from error
