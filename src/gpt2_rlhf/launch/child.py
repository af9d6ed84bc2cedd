"""What a process of a task does: its action, and one line and an exit code whatever happens there."""

import ctypes
import gc
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import AGAIN, in_one_line, say
from gpt2_rlhf.launch import progress_line, world

LOST = 75  # exit code of a process that lost its connection to another

_PR_SET_PDEATHSIG = 1  # prctl(2)


class Interrupted(BaseException):
    """A signal to stop arrived. checkpoint: the one that was written for it, None if nothing was being trained.

    It is no Exception, which a library may catch.
    """

    def __init__(self, signum: int, checkpoint: str | None = None):
        self.signum, self.checkpoint = signum, checkpoint
        super().__init__(signal.Signals(signum).name)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that a killed run leaves no process behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def work(
    name: str, log_dir: Path, place: world.Place, action: Callable[[], None], to: Connection, with_lines: bool
) -> None:
    """Call `action`, and exit with 0, or print one line and exit with another code; see `connect` for the last two.

    The code is 2 for a fault that the user can correct, 130 or 143 after Ctrl-C or SIGTERM, 75 if another process of
    the task ended, 1 for a defect, whose traceback is in `log_dir`.
    """
    die_with_parent()
    gc.freeze()  # each of Accelerate's collections would search what was imported, for 0.2 s
    progress_line.connect(to, with_lines)
    for signum in world.STOPS:
        signal.signal(signum, _stop)
    sys.unraisablehook = _raise_again
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, world.STOPS)
        world.take(place)
        code = _guarded(name, log_dir, action)
        _ignore_signals()
    except Interrupted as stop:
        if world.speaks():
            written = f" after writing {stop.checkpoint}" if stop.checkpoint else ""
            say(f"\n{name} stopped by {stop}{written}; {AGAIN}")
        code = 128 + stop.signum
    sys.exit(code)


def _guarded(name: str, log_dir: Path, action: Callable[[], None]) -> int:
    """Call `action`, print one line if it fails, and return the exit code."""
    from torch.distributed import DistError  # this process has it by now

    try:
        action()
        sys.stdout.flush()
    except UserError as error:
        _keep(f"{error}\n", log_dir)
        _say_first(f"error: {error}")
        return 2
    except Exception as error:
        if (line := in_one_line(error, log_dir)) is not None:
            _keep(f"{name}: {line}\n", log_dir)
            _say_first(f"error: {name}: {line}")
            return 2
        log = log_path(log_dir, world.rank())
        fault = _keep("".join(traceback.format_exception(error)), log_dir)  # whole, for a report
        if world.size(1) > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
            return LOST
        details = f"details in {log}" if fault is None else f"{log} cannot be written: {fault.strerror}"
        _say_first(f"error: {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({details})")
        return 1
    return 0


def _say_first(line: str) -> None:
    """Print the line if this is the first process; of a fault that only others find, `tasks` prints their log."""
    if world.rank() == 0:
        say(line)


def reason(log_dir: Path, code: int) -> str:
    """Return in one line why a process ended with this code, as it wrote it in its log."""
    if code - 128 in (*world.STOPS, signal.SIGKILL):
        return f"stopped by {signal.Signals(code - 128).name}"
    logs = sorted(log_dir.glob("error*.log"), key=lambda path: path.stat().st_mtime)  # the first to fail is the cause
    return next(filter(None, map(last_line, logs)), f"exit code {code}")


def last_line(log: Path) -> str:
    """Return the last line of a log, which says why, or nothing if there is none."""
    try:
        return (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
    except OSError:
        return ""


def log_path(log_dir: Path, rank: int) -> Path:
    """Return where a process keeps why it failed; each of several has a file of its own in the folder that all see."""
    return log_dir / world.log_name("error", rank)


def _keep(text: str, log_dir: Path) -> OSError | None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        log_path(log_dir, world.rank()).write_text(text, encoding="utf-8")
    except OSError as fault:
        return fault
    return None


def _stop(signum: int, frame: FrameType | None) -> None:
    _ignore_signals()  # the terminal sends it as well as the parent, and twice would be a traceback
    raise Interrupted(signum)


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Raise a stop a moment later if it came in a destructor or in a callback of a weak reference, where it is lost."""
    stop = lost.exc_value
    if isinstance(stop, Interrupted):
        signal.signal(signal.SIGALRM, lambda _signum, frame: _stop(stop.signum, frame))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(lost)


def _ignore_signals() -> None:
    for signum in world.STOPS:
        signal.signal(signum, signal.SIG_IGN)
