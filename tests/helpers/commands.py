"""Run commands, and functions of tests, in processes forked from one that has done what takes seconds at the start.

It has imported TRL and composed the settings once. The first use in a test process starts that one. Each has its own
process group, arguments, folder and environment, as a new process has; only variables that libraries read when they are
imported do not reach it.
"""

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

REPOSITORY = Path(__file__).resolve().parents[2]
_IMPORTED = ("cli", "data", "sft", "reward", "ppo", "rloo", "dpo", "evaluate")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*(f"gpt2_rlhf.{name}" for name in _IMPORTED), "helpers.composed"])
_started = list["Command"]()


@dataclass(frozen=True)
class Command:
    """What was started; out and err: the files of what it prints, one file if it prints to one place."""

    process: ForkServerProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        """Return the id of its process and of its process group."""
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        """Return its exit code, that of a signal below 0, or None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """Kill all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Return its exit code and what it has printed.

        Raises:
            TimeoutExpired: it was killed, since it did not end in time.
        """
        self.process.join(timeout_s)
        code = self.process.exitcode
        if code is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.out.read_text(), timeout_s)
        return subprocess.CompletedProcess((), code, self.out.read_text(), self.err.read_text())


def start(*arguments: str | Path) -> Command:
    """Start `python -m gpt2_rlhf` with these arguments in the repository; it prints to one place."""
    return _start(run_here, tuple(map(str, arguments)), to_one_place=True)


def run(*arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m gpt2_rlhf` with these arguments in the repository to its end."""
    return _start(run_here, tuple(map(str, arguments)), to_one_place=False).wait(timeout_s)


def call(
    function: Callable[..., object], *arguments: Any, processes: int = 1, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a process, or in each of several that torchrun starts."""
    if processes > 1:
        return call(in_processes, processes, function, *arguments, timeout_s=timeout_s)
    return _start(function, arguments, to_one_place=False).wait(timeout_s)


def in_processes(processes: int, function: Callable[..., object], *arguments: Any) -> None:
    """Call a function in each of several forks of this process, which torchrun's launcher starts."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    elastic_launch(config, function)(*arguments)


def _start(target: Callable[..., object], arguments: tuple[Any, ...], to_one_place: bool) -> Command:
    folder = Path(tempfile.mkdtemp(prefix="command-"))
    out, err = folder / "out", folder / ("out" if to_one_place else "err")
    out.touch()
    err.touch()
    path = filter(None, [str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH")])  # where it finds helpers.composed
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path)):
        forkserver.ensure_running()
    process = _context.Process(target=_as_new, args=(dict(os.environ), out, err, target, arguments))
    process.start()
    _started.append(Command(process, out, err))
    return _started[-1]


@atexit.register  # multiprocessing would wait for them
def _kill_all() -> None:
    for command in _started:
        if command.poll() is None:
            command.kill()
        shutil.rmtree(command.out.parent)


def _as_new(
    environment: dict[str, str], out: Path, err: Path, target: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    """Make this process what a new one in the repository with this environment is, and call the target there."""
    os.setsid()
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(REPOSITORY), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # what was imported
    target(*arguments)


def run_here(*arguments: str) -> None:
    """Run `python -m gpt2_rlhf` with these arguments as this process."""
    sys.argv = ["gpt2_rlhf", *arguments]
    runpy.run_module("gpt2_rlhf", run_name="__main__", alter_sys=True)
