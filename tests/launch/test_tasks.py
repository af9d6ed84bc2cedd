"""Processes of tasks: the signals they get, from a terminal, from their parent and from a launcher, and their order."""

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch import tasks, world
from gpt2_rlhf.launch.child import Interrupted
from gpt2_rlhf.launch.tasks import Task


def run(action: Callable[[], None], log_dir: Path, capfd: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run an action as the stage sft; return the exit code and what was printed on stderr."""
    with pytest.raises(SystemExit) as stopped:
        tasks.run(Task("sft", log_dir, action))
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


def test_a_signal_that_arrives_while_a_process_is_started_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start = tasks._start

    def start_and_send(*given: Any) -> object:
        running = start(*given)
        os.kill(os.getpid(), signal.SIGTERM)
        return running

    monkeypatch.setattr(tasks, "_start", start_and_send)
    started = time.monotonic()
    code, printed = run(lambda: time.sleep(60), tmp_path, capfd)
    assert code == 143
    assert printed.startswith("\nSIGTERM: stopping ")
    assert "sft stopped by SIGTERM" in printed
    assert time.monotonic() - started < 30


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
    monkeypatch.setattr(tasks, "_PATIENCE_S", 0.0)
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
    monkeypatch.setenv("WORLD_SIZE", "2")

    def stop() -> None:
        raise Interrupted(signal.SIGINT, "checkpoint-3")

    code, printed = run(stop, tmp_path, capfd)
    assert code == 130
    assert printed.count("sft stopped by SIGINT after writing checkpoint-3; run the same command again") == lines


def test_tasks_run_side_by_side_and_each_starts_only_after_those_it_needs(tmp_path: Path) -> None:
    def together(name: str, other: str) -> Callable[[], None]:
        def action() -> None:  # ends only if the other runs at the same time
            (tmp_path / name).touch()
            while not (tmp_path / other).exists():
                time.sleep(0.01)

        return action

    def last() -> None:
        assert (tmp_path / "left").exists()
        assert (tmp_path / "right").exists()

    left, right, end = tmp_path / "l", tmp_path / "r", tmp_path / "e"
    codes = tasks.run_all(
        [
            Task("left", left, together("left", "right")),
            Task("end", end, last, needs=frozenset((left, right))),
            Task("right", right, together("right", "left")),
        ],
        2,
    )
    assert codes == {left: 0, right: 0, end: 0}


def test_what_is_to_be_done_meanwhile_is_done_in_this_process_once_all_tasks_have_begun(tmp_path: Path) -> None:
    found: list[tuple[int, bool]] = []
    has_ended, is_done = tmp_path / "has ended", tmp_path / "is done"

    def meanwhile() -> None:
        found.append((os.getpid(), has_ended.exists()))
        is_done.touch()

    def wait_until_done() -> None:
        while not is_done.exists():
            time.sleep(0.01)

    first = Task("first", tmp_path / "first", has_ended.touch)
    second = Task("second", tmp_path / "second", wait_until_done, needs=frozenset({first.directory}))
    tasks.run_all([first, second], 1, meanwhile=meanwhile)
    assert found == [(os.getpid(), True)]


def fail(code: int) -> Callable[[], None]:
    def action() -> None:
        raise UserError(f"code {code}")

    return action


def test_a_failure_stops_what_runs_beside_it_and_starts_nothing_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    waits, fails, never = tmp_path / "waits", tmp_path / "fails", tmp_path / "never"
    codes = tasks.run_all(
        [Task("waits", waits, lambda: time.sleep(60)), Task("fails", fails, fail(2)), Task("never", never, fail(2))], 2
    )
    assert codes == {fails: 2, waits: 143}
    assert "waits stopped by SIGTERM" in capfd.readouterr().err


def test_others_go_on_after_a_failure_where_that_is_asked_for_but_not_what_needs_it(tmp_path: Path) -> None:
    fails, needs_it, other = tmp_path / "fails", tmp_path / "needs", tmp_path / "other"
    codes = tasks.run_all(
        [
            Task("fails", fails, fail(2)),
            Task("needs", needs_it, lambda: None, needs=frozenset((fails,))),
            Task("other", other, lambda: None),
        ],
        1,
        on_end=lambda task, code: True,
    )
    assert codes == {fails: 2, other: 0}


def place_of(folder: Path) -> None:
    (folder / str(world.rank())).write_text(f"{world.size(1)} {os.environ['LOCAL_RANK']} {torch.get_num_threads()}")


def test_each_process_of_a_task_has_its_place_and_its_threads(tmp_path: Path) -> None:
    tasks.run(Task("sft", tmp_path, lambda: place_of(tmp_path), processes=2, threads=3))
    assert (tmp_path / "0").read_text() == "2 0 3"
    assert (tmp_path / "1").read_text() == "2 1 3"


def test_a_killed_process_ends_those_that_wait_for_it_and_is_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "_PATIENCE_S", 0.5)

    def action() -> None:
        if world.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(SystemExit, match="137"):
        tasks.run(Task("sft", tmp_path, action, processes=2))
    assert capfd.readouterr().err.startswith("error: sft in process 2 of 2 was killed by the system")


def test_a_process_that_only_noticed_the_loss_of_another_is_not_the_one_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        if world.rank() == 0:
            lost_connection()
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(SystemExit, match="137"):
        tasks.run(Task("sft", tmp_path, action, processes=2))
    assert capfd.readouterr().err.startswith("error: sft in process 2 of 2 was killed")


@pytest.mark.parametrize(("ranks", "line"), [((0, 1), "error: no\n"), ((1,), "error: sft in process 2 of 2: no\n")])
def test_a_fault_that_several_processes_find_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ranks: tuple[int, ...], line: str
) -> None:
    def action() -> None:
        if world.rank() in ranks:
            raise UserError("no")

    with pytest.raises(SystemExit, match="2"):
        tasks.run(Task("sft", tmp_path, action, processes=2))
    assert capfd.readouterr().err == line


def test_a_defect_in_another_process_than_the_first_is_named_with_its_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        if world.rank() == 1:
            raise TypeError("of ours")

    with pytest.raises(SystemExit, match="1"):
        tasks.run(Task("sft", tmp_path, action, processes=2))
    details = f"details in {tmp_path / 'error-2.log'}"
    assert capfd.readouterr().err == f"error: sft in process 2 of 2: TypeError: of ours ({details})\n"


def test_what_runs_is_stopped_if_what_it_does_can_no_longer_be_shown(tmp_path: Path) -> None:
    def closed(*_: object) -> str:
        raise OSError("the terminal is closed")

    with pytest.raises(OSError, match="closed"):
        tasks.run_all([Task("sft", tmp_path, lambda: time.sleep(60))], 1, overall=closed)
    for process in multiprocessing.active_children():
        process.join(10)
    assert multiprocessing.active_children() == []
