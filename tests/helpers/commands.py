"""Run commands of the package in processes forked from one that has imported what they import, which takes seconds.

The first command of a test process starts that one. A command has its own process group, arguments, folder and
environment, as a process of its own has; only variables that libraries read when they are imported do not reach it.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_IMPORTED = ("cli", "data", "sft", "reward", "ppo", "rloo", "dpo", "evaluate")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"gpt2_rlhf.{name}" for name in _IMPORTED])
_started = list["Command"]()


@dataclass(frozen=True)
class Command:
    """A command that was started; out and err: the files of what it prints, one file if it prints to one place."""

    arguments: tuple[str, ...]
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
            raise subprocess.TimeoutExpired(self.arguments, timeout_s, self.out.read_text())
        return subprocess.CompletedProcess(self.arguments, code, self.out.read_text(), self.err.read_text())


def start(*arguments: str | Path, to_one_place: bool = True) -> Command:
    """Start `python -m gpt2_rlhf` with these arguments in the repository, with the environment of now."""
    out = Path(tempfile.mkstemp(suffix=".out")[1])
    err = out if to_one_place else out.with_suffix(".err")
    texts = tuple(map(str, arguments))
    process = _context.Process(target=_command, args=(texts, dict(os.environ), out, err))
    process.start()
    command = Command(texts, process, out, err)
    _started.append(command)
    return command


def run(*arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m gpt2_rlhf` with these arguments to its end; see `start`."""
    return start(*arguments, to_one_place=False).wait(timeout_s)


@atexit.register  # multiprocessing would wait for them
def _kill_all() -> None:
    for command in _started:
        if command.poll() is None:
            command.kill()
        command.out.unlink()
        command.err.unlink(missing_ok=True)


def _command(arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    os.setsid()
    os.chdir(REPOSITORY)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(REPOSITORY), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    for file, number in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["gpt2_rlhf", *arguments]
    runpy.run_module("gpt2_rlhf", run_name="__main__", alter_sys=True)
