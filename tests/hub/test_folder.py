from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub import folder
from helpers import finished_run


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return finished_run.write(tmp_path / "outputs")


def test_a_link_out_of_the_outputs_is_not_pushed(tmp_path: Path, model_dir: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (model_dir / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"notes\.txt: it links to .*secret, outside of"):
        folder.files_below(model_dir, tmp_path / "outputs")


def test_a_link_to_a_folder_is_named_and_not_pushed(tmp_path: Path, model_dir: Path) -> None:
    (model_dir / "stage").symlink_to(tmp_path / "outputs" / "stages")
    with pytest.raises(UserError, match="a link to a folder cannot be pushed"):
        folder.files_below(model_dir, tmp_path / "outputs")


def test_a_link_to_a_file_of_a_stage_is_pushed_as_that_file(tmp_path: Path, model_dir: Path) -> None:
    stage_file = tmp_path / "outputs" / "stages" / "model-1" / "curve.png"
    stage_file.write_bytes(b"PNG")
    (model_dir / "curve.png").symlink_to(stage_file)
    assert "curve.png" in folder.files_below(model_dir, tmp_path / "outputs")
