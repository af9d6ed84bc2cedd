"""A stage's process and the signals it gets, from a terminal, from its parent and from a launcher."""

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_rlhf.launch import child
from gpt2_rlhf.launch.progress import Interrupted


def run(action: Callable[[], None], log_dir: Path, capfd: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run an action as the stage sft; return the exit code and what was printed on stderr."""
    with pytest.raises(SystemExit) as stopped:
        child.run("sft", log_dir, action)
    return stopped.value.code, capfd.readouterr().err


def once_started(folder: Path, send: Callable[[], None]) -> Callable[[], None]:
    """Return an action that runs until it is stopped; `send` is called in this process once it runs."""

    def wait_and_send() -> None:
        while not (folder / "started").exists():
            time.sleep(0.01)
        send()

    def action() -> None:
        (folder / "started").touch()
        time.sleep(60)

    threading.Thread(target=wait_and_send, daemon=True).start()
    return action


def to_this_process(*signals: int) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)
        time.sleep(0.1)


def test_ctrl_c_is_announced_and_ends_in_130(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, printed = run(once_started(tmp_path, lambda: to_this_process(signal.SIGINT)), tmp_path, capfd)
    assert code == 130
    announced, stopped = printed.split("\n\n")
    assert announced == "\nSIGINT: stopping sft, after a checkpoint if it is training; Ctrl-C again stops at once"
    assert stopped == "sft stopped by SIGINT; run the same command again to go on\n"


def test_a_signal_that_comes_from_the_terminal_and_from_the_parent_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def send() -> None:
        (started,) = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1:])
        os.kill(started, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    code, printed = run(once_started(tmp_path, send), tmp_path, capfd)
    assert code == 143
    assert printed.count("sft stopped by SIGTERM; run the same command again to go on\n") == 1
    assert "Traceback" not in printed


def test_a_signal_that_arrives_in_the_callback_of_a_weak_reference_is_not_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Watched: ...

    def action() -> None:
        watched = Watched()
        # Python discards what is raised in such a callback, and in a destructor
        reference = weakref.ref(watched, lambda _: to_this_process(signal.SIGTERM))
        del watched
        assert reference() is None
        time.sleep(20)

    started = time.monotonic()
    code, printed = run(action, tmp_path, capfd)
    assert (code, printed) == (143, "\nsft stopped by SIGTERM; run the same command again to go on\n")
    assert time.monotonic() - started < 10


def test_a_second_ctrl_c_ends_a_child_that_does_not_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wait = once_started(tmp_path, lambda: to_this_process(signal.SIGINT, signal.SIGINT))

    def stubborn() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a step of training that takes a minute
        wait()

    code, printed = run(stubborn, tmp_path, capfd)
    assert code == 130
    assert printed.endswith("\nsft stopped at once; run the same command again to go on\n")


def test_a_child_that_is_killed_is_named_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, printed = run(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path, capfd)
    assert code == 137
    assert printed.startswith("error: sft in process 2 of 2 was killed by the system, most often for lack of memory")


def lost_connection() -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:27831: Connection reset by peer")


def test_a_process_that_loses_another_is_silent_if_the_launcher_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    threading.Timer(0.2, to_this_process, [signal.SIGTERM]).start()
    _, printed = run(lost_connection, tmp_path, capfd)
    assert printed == ""
    assert "Connection reset by peer" in (tmp_path / "error.log").read_text()


def test_a_process_that_loses_another_says_so_if_no_launcher_finds_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(child, "_PATIENCE_S", 0.0)
    code, printed = run(lost_connection, tmp_path, capfd)
    assert code != 0
    assert printed == (
        f"error: sft in process 1 of 2 lost the connection to another (details in {tmp_path / 'error.log'}); run the "
        "same command again to go on\n"
    )


def test_a_full_disk_is_one_line_in_whatever_words_a_library_says_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def write() -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    code, printed = run(write, tmp_path, capfd)
    assert code == 2
    assert printed.startswith(f"error: sft: {tmp_path}: No space left on device (")
    assert printed.count("\n") == 1


def test_a_defect_is_one_line_also_where_its_log_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, printed = run(lambda: [][0], tmp_path / "file" / "sft", capfd)
    assert code == 1
    log = tmp_path / "file" / "sft" / "error.log"
    assert printed == f"error: sft: IndexError: list index out of range ({log} cannot be written: Not a directory)\n"


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_only_the_first_of_several_processes_names_the_checkpoint_that_all_wrote(
    rank: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)

    def stop() -> None:
        raise Interrupted(signal.SIGINT, "checkpoint-3")

    code, printed = run(stop, tmp_path, capfd)
    assert code == 130
    assert printed.count("sft stopped by SIGINT after writing checkpoint-3; run the same command again") == lines
