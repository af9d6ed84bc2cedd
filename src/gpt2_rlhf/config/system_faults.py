"""Turn what the system refuses a command, such as a write to a full disk, into one line and exit code 2."""

import atexit
import contextlib
import errno
import gc
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.printable import printable

AGAIN = "run the same command again to go on"

_TORCH_WRITE = "a file could not be written"  # torch knows no more
_NO_ROOM = {os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)} | {_TORCH_WRITE}
_NOT_WRITABLE = {os.strerror(number) for number in (errno.EROFS, errno.EACCES, errno.EPERM)}


def exit_with_one_line(action: Callable[[], None]) -> None:
    """Run an entry point; exit with one line on stderr: 2 after a fault of user or system, 128 + signal if stopped."""
    atexit.register(_leave_quickly)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _require_streams()
        action()
        sys.stdout.flush()  # the interpreter would print a traceback if its own flush failed
    except KeyboardInterrupt as stop:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes that a launcher stopped, one on a node
            say(f"\n{'stopped by SIGTERM' if stop.args else 'interrupted'}; {AGAIN}")
        sys.exit(128 + (signal.SIGTERM if stop.args else signal.SIGINT))
    except SystemExit:
        _stdout_fault("")  # what failed has said so; only the buffer must not fail once more
        raise
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else in_one_line(error, Path())
        if line is None:
            raise
        say(f"error: {line}")
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # a job of Slurm goes on after this


def _stop(signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


def _leave_quickly() -> None:
    """Skip the last garbage collections, which take seconds with torch loaded, and let Ctrl-C end what remains."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def say(line: str) -> None:
    """Print a line on stderr, unless that cannot be written either."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def in_one_line(error: Exception, place: Path) -> str | None:
    """Return the line for an error of the system, such as a full disk; None for another error, a defect.

    place: a folder on the disk that is written to, for errors that name no file.
    """
    if isinstance(error, OSError) and error.filename is None and (line := _stdout_fault("\n")) is not None:
        return line
    reason, cause = _reason(error), error.__cause__ or error.__context__
    while reason is None and cause is not None:  # of what a library raised an error about, only failed writes are known
        reason = _reason(cause) if _reason(cause) in _NO_ROOM else None
        cause = cause.__cause__ or cause.__context__
    if reason is None:
        return None
    file = printable(str(error.filename)) if isinstance(error, OSError) and error.filename else ""
    if reason in _NO_ROOM:
        disk = _disk(Path(file) if file else place)
        facts, remedy = f"{disk.f_bavail * disk.f_frsize / 1e6:,.1f} MB free", "make room"
        if disk.f_files > 0 == disk.f_favail:
            facts += ", but no inode: there are too many files"
        if (limit := largest_file()) is not None:
            facts += f", `ulimit -f` allows files of {limit / 1e6:,.1f} MB"
            remedy += ", or raise that limit"
        return f"{file or place}: {reason} ({facts}); {remedy}, then {AGAIN}"
    remedy = "make it writable, or set output_dir=<another folder>" if reason in _NOT_WRITABLE else "correct that"
    return f"{file}{': ' if file else ''}{reason}; {remedy}, then {AGAIN}"


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk where the path is or will be."""
    disk = _disk(path)
    return disk.f_bavail * disk.f_frsize


def _disk(path: Path) -> os.statvfs_result:
    return os.statvfs(next(place for place in (path, *path.absolute().parents) if place.exists()))


def largest_file() -> int | None:
    """Return how many bytes a file of this process may have, or None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _reason(error: BaseException) -> str | None:
    """Return the system's words for an error. Libraries in Rust and C++ put its number into a text, or forget it."""
    if found := re.search(r"(?:\(os error |\[errno )(\d+)[)\]]", str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, OSError):
        return error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    return _TORCH_WRITE if "iostream error" in str(error) else None


def _require_streams() -> None:
    """Refuse to run without standard output, and give closed streams their numbers back.

    Otherwise the next file that is opened gets such a number, and what C libraries print ends up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
        raise UserError("standard output: closed; redirect it to a file, or to /dev/null")


def _stdout_fault(text: str) -> str | None:
    """Print a text; return the line for standard output that cannot be written, and direct it to nowhere from now on.

    An error does not tell which stream it is of, and does not come again when an emptied buffer is flushed.
    """
    try:
        print(end=text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output: {error.strerror}; redirect it to where it can be written, then {AGAIN}"
    return None
