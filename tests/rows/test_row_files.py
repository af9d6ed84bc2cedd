import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.row_files import check_first_row, rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "Bread?", "chosen": "Bake “it”,\nslowly.", "rejected": "No."},
    {"prompt": "Tea?", "chosen": "Brew it.", "rejected": "Never."},
]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


def write_csv(path: Path, encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Any] = {
    "a.jsonl": lambda path: path.write_text(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES.encode())),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text(LINES),
    "a.csv": write_csv,
    "excel.csv": lambda path: write_csv(path, "utf-8-sig"),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
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
    "other columns in csv": ("a.csv", b"question;answer\nx;y\n", r"has the columns question;answer; expected chosen"),
    "rows that are no objects": ("a.json", b'["x"]', r"has a str for a row; expected chosen and rejected"),
    "no JSON": ("a.jsonl", b"chosen rejected\n", r"a\.jsonl:1: cannot be read as a row; expected valid JSON"),
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
