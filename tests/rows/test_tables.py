from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.tables import load


def test_a_table_that_was_not_written_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*sft\.parquet; run `make data` with the same overrides"):
        load(tmp_path, "sft")
