"""Read one file of rows, whatever its format, with the number that names each row in the report.

A bad line counts as a row that cannot be used. A file that cannot be read to its end is an error, since a model trained
on half of a data set looks like any other.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.transcripts import COLUMNS

ROW_LIMIT = 2**26  # bytes of one row; a longer line is no row of text, and may not fit into memory


def ending(name: str) -> str | None:
    """Return the known ending of the file's name, or None."""
    return next((known for known in ENDINGS if name.lower().endswith(known)), None)


def check_first_row(path: Path) -> None:
    """Refuse a file whose first row cannot be read or has other columns.

    Raises:
        UserError: the file is empty, unreadable, or without the columns chosen and rejected.
    """
    first = next(rows(path), None)
    if first is None:
        raise UserError(f"{path}: has no rows; expected preference pairs")
    number, values = first
    if values is None:
        is_csv = ending(path.name) == ".csv"
        expected = (
            "as many fields as the header has" if is_csv else "JSON in UTF-8: one object a line, or a list of objects"
        )
        raise UserError(f"{path}:{number}: cannot be read as a row; expected {expected}")
    if not isinstance(values, dict):
        raise UserError(f"{path}: has a {type(values).__name__} for a row; expected an object with chosen and rejected")
    _check_columns(path, [str(key) for key in values])


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row with its number, from 1 (in JSON lines, the line's); None stands for a line that is not a row.

    Raises:
        UserError: the file cannot be read to its end.
    """
    try:
        yield from _READERS[ending(path.name) or ""](path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: is cut short or not gzip ({error}); download the file again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); save it as UTF-8") from error
    except OverflowError as error:  # a date or a number that Python cannot hold
        raise UserError(
            f"{path}: has a value that cannot be read ({error}); save prompts and answers as text"
        ) from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory; save its rows as JSON lines, in several files") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def _check_columns(path: Path, columns: Sequence[str]) -> list[str]:
    """Return those of a file's columns that a row is read from, after refusing what is missing or there twice."""
    for column in columns:
        if column in COLUMNS and columns.count(column) > 1:
            raise UserError(f"{path}: has {columns.count(column)} columns named {column}; rename or delete all but one")
    if not {"chosen", "rejected"} <= set(columns):
        raise UserError(
            f"{path}: has the columns {', '.join(columns)}; expected chosen and rejected (HH transcripts) or prompt, "
            "chosen and rejected; rename its columns or choose another file"
        )
    return [column for column in columns if column in COLUMNS]


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(ROW_LIMIT + 1), b""), 1):
            if len(line) > ROW_LIMIT:
                raise UserError(f"{path}:{number}: the line is longer than {ROW_LIMIT} bytes; expected one row a line")
            if not line.isspace():
                try:
                    yield number, _loads(line)
                except (ValueError, RecursionError):
                    yield number, None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as stream:
        is_list = stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    if not is_list:  # many tools write JSON lines with this ending
        yield from _json_lines(path)
        return
    try:
        rows = _loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error}); expected a list of objects") from error
    yield from enumerate(rows, 1)


def _loads(text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):  # json would keep the last one
            raise ValueError("an object has a key twice")
        return values

    return json.loads(text, object_pairs_hook=unique)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(ROW_LIMIT)  # the default of 128 KiB is less than a long conversation
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline(ROW_LIMIT)
        stream.seek(0)
        table = csv.DictReader(stream, delimiter=max(",;\t", key=header.count), strict=True)
        start = 1  # the line on which the row starts
        try:
            _check_columns(path, table.fieldnames or [])
            start = table.line_num + 1
            for number, row in enumerate(table, 1):
                has_fields_of_header = None not in row and None not in row.values()
                yield number, row if has_fields_of_header else None
                start = table.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"{path}:{start}: a row that starts on this line cannot be read ({error}); a field that starts with a "
                'quote must end with one, and hold any other quote twice ("")'
            ) from error


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = _check_columns(path, table.schema_arrow.names)
            yield from _values(table.iter_batches(batch_size=1000, columns=columns))
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: is not a parquet file, or is cut short ({error}); download the file again") from error


def _arrow(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow

    try:
        with path.open("rb") as stream, pyarrow.ipc.open_stream(stream) as table:
            columns = _check_columns(path, table.schema.names)
            yield from _values(batch.select(columns) for batch in table)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: is not an arrow stream, or is cut short ({error}); save the data set again"
        ) from error


def _values(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


_READERS = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".arrow": _arrow,
}
ENDINGS = tuple(_READERS)
