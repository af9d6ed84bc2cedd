"""Run an action in a process of its own, and turn whatever happens there into one line and an exit code.

The memory of a stage and Accelerate's global state go back to the system when its process ends. On Linux the process is
forked from one that has imported TRL and used no device, which saves the seven seconds of imports a stage.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import AGAIN, in_one_line, say
from gpt2_rlhf.launch import world

_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOG = "error.log"
_LOST = 75  # exit code of a process that lost its connection to another
_PATIENCE_S = 10.0  # until a launcher that has found an ended process ends this one


def run(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    """Run an action in a child process; `name` is what messages call it, and a defect is logged in `log_dir`.

    Raises:
        SystemExit: it failed, and the child has printed why. The code is 2 for a fault that the user can correct, 130
            or 143 after Ctrl-C or SIGTERM, 1 for a defect.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    sys.stdout.flush()
    child = context.Process(target=_child, args=(name, log_dir, action), name=name)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until both processes have their handlers
    child.start()
    with _signals_passed_to(child, name) as received:
        child.join()
        code, deadline = child.exitcode or 0, time.monotonic() + _PATIENCE_S
        while code == _LOST and not received and time.monotonic() < deadline:
            time.sleep(0.1)  # the process that ended is the one to be named, not those that noticed
    if code == _LOST and not received:
        say(f"error: {name}{world.which()} lost the connection to another (details in {log_dir / _LOG}); {AGAIN}")
    if code == -signal.SIGKILL and received.count(signal.SIGINT) > 1:
        say(f"{name} stopped at once; {AGAIN}")
        code = -signal.SIGINT
    elif code == -signal.SIGKILL:
        say(
            f"error: {name}{world.which()} was killed by the system, most often for lack of memory; lower "
            "per_device_train_batch_size or local_rollout_forward_batch_size, then run the same command again"
        )
    if code != 0:
        raise SystemExit(128 - code if code < 0 else code)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that a killed run leaves no process behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _child(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    die_with_parent()
    for signum in _SIGNALS:
        signal.signal(signum, _stop)
    sys.unraisablehook = _raise_again
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        code = _guarded(name, log_dir, action)
        _ignore_signals()
    except _Stopped as stop:
        if world.rank() == 0:
            say(f"\n{name} stopped by {stop}; {AGAIN}")
        code = 128 + stop.signum
    sys.exit(code)


def _guarded(name: str, log_dir: Path, action: Callable[[], None]) -> int:
    """Call `action`, print one line if it fails, and return the exit code."""
    from torch.distributed import DistError  # this process has both by now

    from gpt2_rlhf.launch.progress import Interrupted

    try:
        action()
        sys.stdout.flush()
    except UserError as error:
        say(f"error: {error}")
        return 2
    except Interrupted as stop:
        if world.rank() == 0:
            say(f"\n{name} stopped by {stop} after writing {stop.checkpoint}; {AGAIN}")
        return 128 + stop.signum
    except Exception as error:
        if (line := in_one_line(error, log_dir)) is not None:
            say(f"error: {name}: {line}")
            return 2
        details = _log(error, log_dir)
        if world.is_started_by_launcher() and (isinstance(error, DistError) or "gloo" in str(error)):
            return _LOST
        say(f"error: {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({details})")
        return 1
    return 0


def _log(error: Exception, log_dir: Path) -> str:
    """Keep the traceback of a defect, of ours or of a library, whole for a report; return where it is."""
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        (log_dir / _LOG).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as fault:
        return f"{log_dir / _LOG} cannot be written: {fault.strerror}"
    return f"details in {log_dir / _LOG}"


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM arrived while nothing was being trained."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


def _stop(signum: int, frame: FrameType | None) -> None:
    _ignore_signals()  # the terminal sends it as well as the parent, and twice would be a traceback
    raise _Stopped(signum)


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Raise a stop a moment later if it came in a destructor or in a callback of a weak reference, where it is lost."""
    stop = lost.exc_value
    if not isinstance(stop, _Stopped):
        sys.__unraisablehook__(lost)
        return

    def again(_signum: int, _frame: FrameType | None) -> None:
        raise _Stopped(stop.signum)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def _ignore_signals() -> None:
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def _signals_passed_to(child: BaseProcess, name: str) -> Iterator[list[int]]:
    """Within the block, pass signals on and say so at once; a second Ctrl-C kills the child. Yield those received."""
    received: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if received.count(signal.SIGINT) > 1:
            child.kill()
            return
        if not world.is_started_by_launcher():
            announce_stop(signum, name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid or 0, signum)

    before = {s: signal.signal(s, forward) for s in _SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def announce_stop(signum: int, name: str) -> None:
    """Say what a signal will do; written past the buffers, since a handler may have interrupted a print."""
    again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
    line = f"\n{signal.Signals(signum).name}: stopping {name}, after a checkpoint if it is training{again}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
