from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import tokens
from gpt2_rlhf.rows import tables
from gpt2_rlhf.rows.transcripts import Pair
from helpers.tiny import tiny_tokenizer


def pairs(count: int) -> list[Pair]:
    return [
        Pair(f"\n\nHuman: Is it {n}?\n\nAssistant:", f" Yes, {n}.", " No.", "mine", str(n), None) for n in range(count)
    ]


def test_a_table_that_was_not_written_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*sft\.parquet; run `make data` with the same overrides"):
        tables.load(tmp_path, "sft")


@pytest.mark.parametrize(("most", "expected"), [(None, 5), (3, 3), (0, 0), (9, 5)])
def test_at_most_so_many_rows_are_read_from_the_start(tmp_path: Path, most: int | None, expected: int) -> None:
    tables.write(tmp_path, {"test": pairs(5)})
    assert [row["row"] for row in tables.load(tmp_path, "test", most)] == [str(n) for n in range(expected)]
    assert tables.size(tmp_path, "test") == 5


def test_token_columns_are_those_of_all_rows_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 3)
    tables.write(tmp_path, {"sft": pairs(7)})
    tokenizer = tiny_tokenizer()
    columns = tables.token_columns(tmp_path, "sft", lambda rows: tokens.encode_sft(tokenizer, rows))
    assert list(columns) == tokens.encode_sft(tokenizer, tables.load(tmp_path, "sft"))


def test_the_longest_list_of_tokens_is_found_in_any_column_and_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_ROWS_AT_ONCE", 2)
    tables.write(tmp_path, {"reward": pairs(5)})
    encoded = iter(
        [[{"a": [1] * 3, "b": [1]}, {"a": [1], "b": [1] * 7}], [{"a": [1] * 5, "b": [1]}] * 2, [{"a": [], "b": [1]}]]
    )
    assert tables.longest_tokens(tables.token_columns(tmp_path, "reward", lambda _rows: next(encoded))) == 7
