import errno
import os
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import files


def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file.json"
    files.write_json(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failed:
        files.write_json(file, "new")
    assert failed.value.filename == str(file)
    assert file.read_text() == '"old"\n'
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_replaces_a_link_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for target in ("a", "b"):
        files.link(tmp_path / "link", Path(target))
        assert (tmp_path / "link").readlink() == Path(target)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_link_that_is_right_is_not_written_again(tmp_path: Path) -> None:
    files.link(tmp_path / "link", Path("a"))
    before = (tmp_path / "link").lstat().st_ino
    files.link(tmp_path / "link", Path("a"))
    assert (tmp_path / "link").lstat().st_ino == before


def test_a_folder_in_the_place_of_a_link_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "mine").touch()
    with pytest.raises(UserError, match=f"{tmp_path / 'link'}: a folder, as `cp -rL` makes it; expected a link"):
        files.link(tmp_path / "link", Path("a"))
    assert [path.name for path in tmp_path.rglob("*")] == ["link", "mine"]
