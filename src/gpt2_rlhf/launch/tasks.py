"""Run tasks in processes of their own, side by side where they do not need each other.

The memory of a task and Accelerate's global state go back to the system when its processes end. On Linux they are
forked from a process that has imported TRL and used no device, which saves seconds of imports a task. A task of several
processes trains data-parallel on this machine: each process gets its place (`world.Place`).
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from gpt2_rlhf.config.system_faults import AGAIN, say
from gpt2_rlhf.launch import child, world
from gpt2_rlhf.launch.display import Display, Overall

_PATIENCE_S = 10.0  # until the processes that lost another have noticed it
_POLL_S = 0.2


@dataclass(frozen=True)
class Task:
    """What is run: its name in messages, the directory that names it and gets the log of a defect, and its action.

    needs: directories of tasks that must have ended well before.
    threads: of each process; None: the cores are divided by the processes that run at once.
    """

    name: str
    directory: Path
    action: Callable[[], None]
    needs: frozenset[Path] = frozenset()
    processes: int = 1
    threads: int | None = None


def run(task: Task) -> None:
    """Run one task to its end.

    Raises:
        SystemExit: it failed, and has said why; the codes are those of `child.work`.
    """
    code = run_all([task], 1)[task.directory]
    if code != 0:
        raise SystemExit(code)


def run_all(
    tasks: Sequence[Task],
    at_once: int,
    on_end: Callable[[Task, int], bool] = lambda task, code: code == 0,
    overall: Overall | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[Path, int]:
    """Run each task when those that it needs have ended well, at most `at_once` side by side, in the given order.

    on_end: called with the exit code of each task; returns whether others may go on. If not, no more are started,
        and those that run are asked to stop if this one failed.
    overall: returns the line on all tasks, for `display`.
    meanwhile: called in a thread of this process once all tasks are started, since a process that is forked from one
        with several threads may get a lock that nobody opens.

    Returns:
        The exit code of each task that was started.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; those that ran have stopped or ended.
    """
    waiting, running, codes = list(tasks), list[_Running](), dict[Path, int]()
    directories = {task.directory for task in tasks}
    display, beside = Display(overall), threading.Thread(target=meanwhile)
    with _signals_passed_to(running, display) as received:
        while True:
            for task in list(waiting) if not received else []:
                ready = all(codes.get(need) == 0 for need in task.needs & directories)
                if ready and len(running) < at_once:
                    waiting.remove(task)
                    signal.pthread_sigmask(signal.SIG_BLOCK, world.STOPS)  # until the child has its own handlers
                    try:
                        display.start(task.directory, task.name)
                        running.append(_start(task, at_once, display.is_live))
                    finally:
                        signal.pthread_sigmask(signal.SIG_UNBLOCK, world.STOPS)
                    for signum in received[-1:]:  # it came before `forward` knew the child, through another thread
                        running[-1].send(signum)
            if not running:
                break
            if not waiting and beside.ident is None:
                beside.start()
            wait([process.sentinel for one in running for process in one.processes if process.is_alive()], _POLL_S)
            ended = [one for one in running if one.has_ended()]
            for one in running:
                one.pass_on_to(display)
            display.refresh()
            for one in ended:
                running.remove(one)
                display.end(one.task.directory)
                code = codes[one.task.directory] = one.exit_code(received)
                if on_end(one.task, code):
                    continue
                waiting.clear()
                if code != 0:
                    for other in running:
                        other.send(signal.SIGTERM)
        if beside.ident is not None:
            beside.join()
    if received:
        if not any(codes.values()):
            say(f"stopped by {signal.Signals(received[0]).name}; {AGAIN}")
        raise SystemExit(128 + received[0])
    return codes


@dataclass
class _Running:
    """The processes of a task that was started."""

    task: Task
    processes: list[BaseProcess] = field(default_factory=list)
    messages: list[Connection] = field(default_factory=list)  # of each process
    killed: set[int | None] = field(default_factory=set)  # process ids; no cause of a failure
    deadline: float | None = None

    def send(self, signum: int) -> None:
        for process in self.processes:
            if process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signum)

    def pass_on_to(self, display: Display) -> None:
        """Have everything shown that the processes have sent."""
        for connection in list(self.messages):
            try:
                while connection.poll():
                    display.receive(self.task.directory, connection.recv())
            except EOFError:
                self.messages.remove(connection)

    def has_ended(self) -> bool:
        """Whether all processes have ended; those that wait for one that failed are killed."""
        codes = [process.exitcode for process in self.processes]
        if None not in codes:
            return True
        if any(code not in (None, 0) for code in codes):
            self.deadline = self.deadline or time.monotonic() + _PATIENCE_S
            if time.monotonic() > self.deadline:
                self.killed |= {process.pid for process in self.processes if process.exitcode is None}
                self.send(signal.SIGKILL)
        return False

    def exit_code(self, received: Sequence[int]) -> int:
        """Say what ended the task if it could not say so itself, and return the code for the shell."""
        name, count = self.task.name, len(self.processes)
        ended = [(rank, process.exitcode or 0) for rank, process in enumerate(self.processes)]
        causes = [(rank, code) for rank, code in ended if code and self.processes[rank].pid not in self.killed]
        rank, code = min(causes, key=lambda one: one[1] == child.LOST, default=(0, 0))
        which = f" in process {rank + 1} of {count}" if count > 1 else world.which()
        log = child.log_path(self.task.directory, rank if count > 1 else world.rank())
        is_unsaid = code == child.LOST or (code in (1, 2) and log != child.log_path(self.task.directory, 0))
        if is_unsaid and count == 1 and not (world.node() and world.speaks()):
            code = _after_the_launcher(code, received)  # of several nodes, each says it at once: it may get no time to
        if code == child.LOST:
            say(f"error: {name}{which} lost the connection to another (details in {log}); {AGAIN}")
        elif is_unsaid and code in (1, 2):
            say(f"error: {name}{which}: {child.last_line(log)}{f' (details in {log})' if code == 1 else ''}")
        elif code == -signal.SIGKILL and received.count(signal.SIGINT) > 1:
            say(f"{name} stopped at once; {AGAIN}")
            code = -signal.SIGINT
        elif code == -signal.SIGKILL:
            say(
                f"error: {name}{which} was killed by the system, most often for lack of memory; lower "
                "per_device_train_batch_size or local_rollout_forward_batch_size, then run the same command again"
            )
        return 128 - code if code < 0 else code


def _after_the_launcher(code: int, received: Sequence[int]) -> int:
    """Give a launcher time to end this process, since the process that ended is to be named, not those that noticed."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if received:
            return 128 + received[0]
        time.sleep(_POLL_S)
    return code


def _start(task: Task, at_once: int, with_lines: bool) -> _Running:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    sys.stdout.flush()
    started = _Running(task)
    for place in world.places(task.processes, task.threads, at_once):
        messages, to = context.Pipe(duplex=False)
        arguments = (task.name, task.directory, place, task.action, to, with_lines)
        process = context.Process(target=child.work, args=arguments)
        process.start()
        to.close()
        started.processes.append(process)
        started.messages.append(messages)
    return started


@contextlib.contextmanager
def _signals_passed_to(running: Sequence[_Running], display: Display) -> Iterator[list[int]]:
    """Within the block, pass signals on and say so at once; a second Ctrl-C kills. Yield those received."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        kills = received.count(signal.SIGINT) > 1
        if not kills and not world.is_started_by_launcher():
            names = " and ".join(one.task.name for one in running) or "the run"
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            line = f"\n{signal.Signals(signum).name}: stopping {names}, after a checkpoint if it is training{again}\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())  # past the buffers, since a print may have been interrupted
            display.leave()
        for one in list(running):
            one.send(signal.SIGKILL if kills else signum)

    before = {signum: signal.signal(signum, forward) for signum in world.STOPS}
    try:
        yield received
    except BaseException:  # such as a terminal that was closed
        for one in running:
            one.send(signal.SIGTERM)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
