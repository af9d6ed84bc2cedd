import dataclasses
import json
from pathlib import Path

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models.tokens import load_base_tokenizer
from gpt2_rlhf.rows import lengths, tables
from gpt2_rlhf.rows.transcripts import pair
from helpers import pairs

SETTINGS = compose.load(["data.train_pairs=1000", "data.test_pairs=50"]).settings
TOKENIZER = load_base_tokenizer(SETTINGS.model, None)


def tokens(text: str) -> int:
    return len(TOKENIZER.encode(text))


def test_lengths_of_a_table_are_those_of_its_texts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "\n\nHuman: How are you?\n\nAssistant:", "chosen": " Well, thank you.", "rejected": " No."},
        {"prompt": "\n\nHuman: And now?\n\nAssistant:", "chosen": " Better.", "rejected": " I do not know at all."},
    ]
    tables.write(tmp_path, {"sft": [pair(row, "", "") for row in rows]})
    counts = [[tokens(row[part]) for part in ("prompt", "chosen", "rejected")] for row in rows]
    found = lengths.of_tables(tmp_path, TOKENIZER)["sft"]
    assert found.rows == 2
    assert found.prompt == sum(prompt for prompt, _, _ in counts) / 2
    assert found.answer == sum(chosen + rejected for _, chosen, rejected in counts) / 4 + 1  # and EOS
    sums = [prompt + answer + 1 for prompt, *answers in counts for answer in answers]
    assert found.longest == max(sums)
    mean = sum(sums) / 4
    assert found.spread == pytest.approx((sum((one - mean) ** 2 for one in sums) / 4) ** 0.5)


def test_tables_that_are_not_built_have_the_shares_of_the_rows() -> None:
    found, seconds = lengths.expected(SETTINGS.data, TOKENIZER)
    assert {name: table.rows for name, table in found.items()} == {
        "sft": 100, "reward": 400, "judge": 400, "ppo": 100, "test": 50
    }  # fmt: skip
    assert 10 < found["sft"].prompt < 60
    assert seconds is not None


def test_rows_of_a_file_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": question, "chosen": "Yes.", "rejected": "No."} for question in pairs.questions(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = dataclasses.replace(SETTINGS.data, path=str(tmp_path / "pairs.jsonl"), name="", train_pairs=None)
    found, _ = lengths.expected(data, TOKENIZER)
    assert found["test"].rows == 4  # a tenth is held out
    assert found["reward"].rows == round(0.4 * 36)


def test_a_file_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": question, "chosen": "Yes.", "rejected": "Yes."} for question in pairs.questions(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = dataclasses.replace(SETTINGS.data, path=str(tmp_path / "pairs.jsonl"), name="")
    with pytest.raises(UserError, match=r"pairs\.jsonl: none of 3 rows can be used; `make data` says why"):
        lengths.expected(data, TOKENIZER)
