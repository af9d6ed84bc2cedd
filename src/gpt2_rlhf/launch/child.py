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
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import AGAIN, in_one_line, say

_PR_SET_PDEATHSIG = 1  # prctl(2)


def run(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    """Run an action in a child process; `name` is what messages call it, and a defect is logged in `log_dir`.

    Raises:
        SystemExit: it failed, and the child has printed why. The code is 2 for a fault that the user can correct, 130
            or 143 after Ctrl-C or SIGTERM, 1 for a defect.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    sys.stdout.flush()
    child = context.Process(target=_child, args=(name, log_dir, action), name=name)
    child.start()
    with _signals_passed_to(child.pid):
        child.join()
    code = child.exitcode or 0
    if code == -signal.SIGKILL:
        say(
            f"error: {name} was killed by the system, most often for lack of memory; lower "
            "per_device_train_batch_size or local_rollout_forward_batch_size, then run the same command again"
        )
    if code != 0:
        raise SystemExit(128 - code if code < 0 else code)


def _child(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    _die_with_parent()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(_guarded(name, log_dir, action))


def _guarded(name: str, log_dir: Path, action: Callable[[], None]) -> int:
    """Call `action`, print one line if it fails, and return the exit code."""
    from gpt2_rlhf.launch.progress import Interrupted  # it imports transformers, which this process has by now

    try:
        action()
        sys.stdout.flush()
    except UserError as error:
        say(f"error: {error}")
        return 2
    except Interrupted as stop:
        say(f"\n{name} stopped by {stop} after writing {stop.checkpoint}; {AGAIN}")
        return 128 + stop.signum
    except KeyboardInterrupt:
        say(f"\n{name} interrupted; {AGAIN}")
        return 128 + signal.SIGINT
    except _Terminated:
        say(f"\n{name} terminated; {AGAIN}")
        return 128 + signal.SIGTERM
    except Exception as error:
        if (line := in_one_line(error, log_dir)) is not None:
            say(f"error: {name}: {line}")
            return 2
        _log_defect(name, log_dir / "error.log", error)
        return 1
    return 0


def _log_defect(name: str, log: Path, error: Exception) -> None:
    """Keep the traceback of a defect, of ours or of a library, whole for a report."""
    details = f"details in {log}"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as fault:
        details = f"{log} cannot be written: {fault.strerror}"
    say(f"error: {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({details})")


class _Terminated(Exception):
    """SIGTERM arrived while nothing was being trained."""


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, so that a killed run leaves no process behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _signals_passed_to(pid: int | None) -> Iterator[None]:
    def forward(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or 0, signum)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
