import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import locks
from gpt2_rlhf.store.stage import Stage


def stage_at(tmp_path: Path) -> Stage:
    return Stage("sft", tmp_path / "stages" / "sft-0", {}, {})


def test_a_second_run_is_refused_and_told_who_holds_the_stage(tmp_path: Path) -> None:
    part = stage_at(tmp_path)
    with locks.held([part]), pytest.raises(UserError, match=f"another run is building it .process {os.getpid()} on"):
        locks.held([part]).__enter__()


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    part = stage_at(tmp_path)
    with locks.held([part]):
        assert locks.is_held(part)
    assert not locks.is_held(part)


def test_asking_whether_a_lock_is_held_leaves_its_holder_s_name(tmp_path: Path) -> None:
    part = stage_at(tmp_path)
    with locks.held([part]):
        locks.is_held(part)
        assert str(os.getpid()) in locks.lock_path(part).read_text()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    part = stage_at(tmp_path)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold_until_killed, args=(part, ready))
    holder.start()
    assert ready.wait(timeout=30)
    assert locks.is_held(part)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    assert not locks.is_held(part)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    part = Stage("sft", tmp_path / "file" / "stages" / "sft-0", {}, {})
    with pytest.raises(UserError, match=r"output_dir: .* cannot be written or locked \(Not a directory\)"):
        locks.held([part]).__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSPC])
def test_a_file_system_without_locks_is_one_line_and_nothing_counts_as_running(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = stage_at(tmp_path)
    with locks.held([part]):  # so that its file exists

        def refused(file: object, operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refused)
        assert not locks.is_held(part)
        with pytest.raises(UserError, match=rf"cannot be written or locked \({os.strerror(number)}\); set output_dir"):
            locks.held([part]).__enter__()


def test_asking_whether_a_lock_is_held_writes_nothing(tmp_path: Path) -> None:
    assert not locks.is_held(stage_at(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_leaves_no_lock_file(tmp_path: Path) -> None:
    part = stage_at(tmp_path)
    with pytest.raises(SystemExit), locks.held([part]):
        raise SystemExit(2)
    assert list(part.directory.parent.iterdir()) == []


def test_a_lock_whose_file_its_last_holder_deleted_is_taken_on_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, flock = stage_at(tmp_path), fcntl.flock

    def after_deletion(file: object, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        locks.lock_path(part).unlink()
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", after_deletion)
    with locks.held([part]):
        assert locks.is_held(part)


def _hold_until_killed(part: Stage, ready: object) -> None:
    with locks.held([part]):
        ready.set()  # type: ignore[attr-defined]
        signal.pause()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("server:/home /disk nfs4 rw,vers=4.2,local_lock=none 0 0", None),
        ("server:/home /disk nfs rw,vers=3,local_lock=flock 0 0", "nfs local_lock=flock"),
        ("server:/home /disk nfs rw,nolock,vers=3 0 0", "nfs nolock"),
        ("mds@tcp:/scratch /disk lustre rw,localflock 0 0", "lustre localflock"),
        ("mds@tcp:/scratch /disk lustre rw,flock 0 0", None),
        ("server:/home /diskette nfs rw,nolock 0 0", None),
    ],
)
def test_a_disk_whose_locks_other_nodes_do_not_see_is_known_by_its_mount_option(
    tmp_path: Path, line: str, expected: str | None
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\n{line}\n")
    assert locks._local_only(Path("/disk/outputs/stages/sft-0"), mounts) == expected
