import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows import row_files
from gpt2_rlhf.rows.row_files import check_first_row, rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "Bread?", "chosen": "Bake “it”,\nslowly.", "rejected": "No."},
    {"prompt": "Tea?", "chosen": "Brew it.", "rejected": "Never."},
]
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


def write_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> None:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_arrow(path: Path, table: pa.Table = TABLE) -> None:
    """Write the stream that `save_to_disk` of the datasets library writes."""
    with path.open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Any] = {
    "a.arrow": write_arrow,
    "UPPER.JSONL": lambda path: path.write_text(LINES),
    "Upper.Jsonl.GZ": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "semicolon.csv": lambda path: write_csv(path, delimiter=";"),
    "tab.csv": lambda path: write_csv(path, delimiter="\t"),
    "a.jsonl": lambda path: path.write_text(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text(LINES),
    "a.csv": write_csv,
    "excel.csv": lambda path: write_csv(path, "utf-8-sig"),
    "a.parquet": lambda path, table=TABLE: pq.write_table(table, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_numbered_from_one(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    check_first_row(tmp_path / name)
    assert list(rows(tmp_path / name)) == [(1, ROWS[0]), (2, ROWS[1])]


def test_messages_survive_parquet(tmp_path: Path) -> None:
    row = {"chosen": [{"role": "user", "content": "Hi"}], "rejected": [{"role": "user", "content": "Ho"}]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert list(rows(tmp_path / "a.parquet")) == [(1, row)]


def test_a_bad_line_is_a_row_to_count_and_a_blank_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b"}\n\nnot JSON\n[1]\n')
    assert list(rows(path)) == [(1, {"chosen": "a", "rejected": "b"}), (3, None), (4, [1])]


def test_a_csv_field_may_be_longer_than_the_standard_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"chosen,rejected\n{'a' * 200_000},b\n")
    assert len(next(rows(path))[1]["chosen"]) == 200_000


def test_a_csv_row_with_a_stray_comma_is_a_row_to_count(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("chosen,rejected\na,b\na,b,c\na\n")
    assert list(rows(path)) == [(1, {"chosen": "a", "rejected": "b"}), (2, None), (3, None)]


CUT_SHORT = gzip.compress(b"".join(b'{"chosen": "%d", "rejected": "no"}\n' % n for n in range(50_000)))[:20_000]

UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("a.jsonl", b"", r"a\.jsonl: has no rows"),
    "empty list": ("a.json", b"[]", r"a\.json: has no rows"),
    "csv with a header alone": ("a.csv", b"chosen,rejected\n", r"a\.csv: has no rows"),
    "other columns": (
        "a.jsonl",
        b'{"text": "x", "label": 1}',
        r"has the columns text, label; expected chosen and reject",
    ),
    "other columns in csv": ("a.csv", b"question;answer\nx;y\n", r"has the columns question, answer; expected chosen"),
    "rows that are no objects": ("a.json", b'["x"]', r"has a str for a row; expected an object with chosen"),
    "two columns of one name": ("a.csv", b"chosen,rejected,chosen\na,b,c\n", r"has 2 columns named chosen; rename"),
    "quote in csv": (
        "a.csv",
        b'chosen,rejected\n"a" b,c\n',
        r"a\.csv:2: a row that starts on this line cannot be read",
    ),
    "no arrow stream": ("a.arrow", b"chosen rejected", r"is not an arrow stream"),
    "deep list": ("a.json", b"[" * 200_000, r"a\.json: is not valid JSON"),
    "no JSON": ("a.jsonl", b"chosen rejected\n", r"a\.jsonl:1: cannot be read as a row; expected JSON in UTF-8"),
    "csv fields": ("a.csv", b"chosen,rejected\na,b,c\n", r"a\.csv:1: cannot be read as a row; expected as many fields"),
    "broken list": ("a.json", b'[{"chosen": ', r"a\.json: is not valid JSON"),
    "no gzip": ("a.jsonl.gz", b'{"chosen": "a", "rejected": "b"}\n', r"cut short or not gzip"),
    "no parquet": ("a.parquet", b'{"chosen": "a", "rejected": "b"}\n', r"is not a parquet file"),
    "Latin-1 csv": ("a.csv", "chosen,rejected\ncafé,b\n".encode("latin-1"), r"cannot be read as UTF-8"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_used_is_refused_with_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = UNREADABLE[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        check_first_row(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)


def test_a_gzip_file_cut_short_is_an_error_and_not_fewer_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(CUT_SHORT)
    check_first_row(tmp_path / "a.jsonl.gz")
    with pytest.raises(UserError, match="is cut short or not gzip"):
        list(rows(tmp_path / "a.jsonl.gz"))


def test_an_unclosed_quote_is_an_error_that_names_the_line_and_not_fewer_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for rest in ('"c","d"\n' * 5, "c,d\n" * 5):
        path.write_text(f'chosen,rejected\n"a\na","b"\n"c,d\n{rest}')
        with pytest.raises(UserError, match=r"a\.csv:4: a row that starts on this line cannot be read"):
            list(rows(path))


def test_a_line_that_cannot_be_decoded_is_a_row_to_count(tmp_path: Path) -> None:
    deep, huge, twice = "[" * 100_000, "9" * 5000, '{"chosen": "a", "chosen": "b"}'
    (tmp_path / "a.jsonl").write_text(f"{LINES}{deep}\n{huge}\n{twice}\n")
    assert [values for _, values in rows(tmp_path / "a.jsonl")] == [*ROWS, None, None, None]


def test_a_line_longer_than_the_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "ROW_LIMIT", 1000)
    for name, content in (("a.jsonl.gz", gzip.compress(b"0" * 5000)), ("a.csv", b"chosen,rejected\n" + b"0" * 5000)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"1000"):
            list(rows(tmp_path / name))


def test_a_value_that_python_cannot_hold_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a", "b"]), FAR], ["chosen", "rejected"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: has a value that cannot be read"):
        check_first_row(tmp_path / "a.parquet")


def test_a_file_that_does_not_fit_into_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(path: Path) -> bytes:
        raise MemoryError

    (tmp_path / "a.json").write_text("[]")
    monkeypatch.setattr(Path, "read_bytes", no_memory)
    with pytest.raises(UserError, match=r"a\.json: does not fit into memory; save its rows as JSON lines"):
        check_first_row(tmp_path / "a.json")


FAR = pa.array([2**60, 2**60], pa.timestamp("ms"))  # past year 9999, which Python's dates cannot hold


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_column_that_is_not_needed_is_not_read(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, TABLE.append_column("date", FAR))
    assert list(rows(tmp_path / name)) == [(1, ROWS[0]), (2, ROWS[1])]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize(
    ("columns", "message"),
    [(["text", "date"], "has the columns text, date;"), (["chosen", "chosen"], "has 2 columns named chosen")],
)
def test_a_table_with_other_or_double_columns_is_refused(
    tmp_path: Path, name: str, columns: list[str], message: str
) -> None:
    WRITERS[name](tmp_path / name, pa.Table.from_arrays([pa.array(["a", "b"]), FAR], columns))
    with pytest.raises(UserError, match=message):
        check_first_row(tmp_path / name)
