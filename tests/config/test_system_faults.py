"""Faults of the system, made real: a full device, a pipe without a reader, a file-size limit, errors of libraries."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file

from gpt2_rlhf import cli
from gpt2_rlhf.config.system_faults import exit_with_one_line, in_one_line
from gpt2_rlhf.store import files


def only_line(action: Callable[[], None], capfd: pytest.CaptureFixture[str]) -> str:
    """Run an entry point that fails; return its one line on stderr after a check that the exit code is 2."""
    with pytest.raises(SystemExit) as stopped:
        exit_with_one_line(action)
    assert stopped.value.code == 2
    line = capfd.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1, 100_000], ids=["less than a buffer", "more than a buffer"])
def test_a_full_standard_output_is_one_line(
    size: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        line = only_line(lambda: print("x" * size), capfd)
    assert line.startswith("error: standard output: No space left on device; redirect it")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "output_dir=nowhere"]], ids=["print", "a table of rich"])
def test_a_pipe_without_a_reader_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        line = only_line(lambda: cli.main(arguments), capfd)
    assert line.startswith("error: standard output: Broken pipe; ")


def test_a_closed_standard_output_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    ran: list[bool] = []
    assert "standard output: closed; redirect it" in only_line(lambda: ran.append(True), capfd)
    assert not ran


def test_a_standard_error_that_is_full_as_well_leaves_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stderr", Full())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["no such command"])
    assert stopped.value.code == 2


TABLE = pyarrow.table({"a": np.random.default_rng(0).integers(0, 2**60, 50_000)})


def _torch_save(path: Path) -> None:
    torch.save({"a": torch.zeros(50_000), "b": torch.zeros(50_000)}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_text("x" * 50_000), "File too large"),
        (lambda path: files.write_json(path, "x" * 50_000), "File too large"),
        (lambda path: save_file({"a": torch.zeros(50_000)}, path), "File too large"),  # an error of Rust
        (lambda path: parquet.write_table(TABLE, path), "File too large"),  # an OSError in words of its own
        (_torch_save, "a file could not be written"),  # an error of C++, which names no cause
    ],
    ids=["text", "replacing", "safetensors", "parquet", "torch"],
)
def test_a_write_past_the_limit_of_the_shell_names_the_limit(
    write: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with file_size_limit(20_000), pytest.raises(Exception) as failed:  # noqa: PT011 - each library has its own
        write(tmp_path / "file")
    with file_size_limit(20_000):
        line = in_one_line(failed.value, tmp_path)
    assert line is not None
    assert line.startswith(str(tmp_path))
    assert f"{reason} (" in line
    assert "MB free, `ulimit -f` allows files of 0.0 MB); make room, or raise that limit, then run" in line


def test_a_disk_without_a_free_inode_is_not_told_by_its_free_bytes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs_result((4096, 4096, 1000, 500, 500, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    line = in_one_line(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path)), tmp_path)
    assert line is not None
    assert "No space left on device (2.0 MB free, but no inode: there are too many files); make room, then run" in line


def test_an_error_that_names_its_file_is_told_by_it_and_not_by_standard_output() -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "outputs/file")
    assert in_one_line(error, Path()) == (
        "outputs/file: Read-only file system; make it writable, or set output_dir=<another folder>, then run the same "
        "command again to go on"
    )


def _defect(missing: Path) -> None:
    try:
        missing.read_text()
    except FileNotFoundError:
        {}["defect"]


def test_a_defect_that_comes_up_while_a_missing_file_is_handled_stays_a_defect(tmp_path: Path) -> None:
    with pytest.raises(KeyError) as failed:
        _defect(tmp_path / "missing")
    assert in_one_line(failed.value, tmp_path) is None


def test_a_command_that_ends_leaves_without_a_last_garbage_collection_and_without_a_traceback_of_ctrl_c() -> None:
    code = """
import atexit, gc, os, signal
from gpt2_rlhf.config.system_faults import exit_with_one_line
atexit.register(lambda: (print(gc.get_freeze_count() > 1000, flush=True), os.kill(os.getpid(), signal.SIGINT)))
exit_with_one_line(lambda: None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "True\n", "")
