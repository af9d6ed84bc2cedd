"""Tell the process that started this one how far its work is, and when it will be done; `display` shows it.

Work outside of a task, such as reading the rows for a dry run, has no such process; then it is printed here.
"""

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

from gpt2_rlhf.launch import world

T = TypeVar("T")

LINE_EVERY_S = 5.0  # in a log; the lines of a terminal are rewritten
_TOLD_EVERY_S = 0.2


@dataclass(frozen=True)
class Doing:
    """How far a task is, the seconds that it still takes if they are known, and its newest figures.

    is_part: whether step and seconds are those of a part, such as a held-out measurement, after which others follow.
    """

    step: str
    eta_s: float | None = None
    figures: Sequence[str] = ()
    is_part: bool = False


class _Connected:
    """Where this process sends what it does; None in a process that no task runs in."""

    to: Connection | None = None
    one_at_a_time = threading.RLock()  # computations may run in threads (models.threads); a signal's handler may print


def connect(to: Connection, with_lines: bool) -> None:
    """Send what this process does to the one that started it; with_lines: all that it prints too."""
    _Connected.to = to
    if with_lines:
        sys.stdout, sys.stderr = _Lines(to, "stdout"), _Lines(to, "stderr")


def tell(doing: Doing) -> bool:
    """Send what this process does; return whether another process shows it."""
    if _Connected.to is None:
        return False
    with contextlib.suppress(OSError), _Connected.one_at_a_time:  # the other has ended, and so will this one
        _Connected.to.send(doing)
    return True


class _Lines(io.TextIOBase):
    """A stream that sends its lines, for a terminal of which another process rewrites the end."""

    def __init__(self, to: Connection, name: str):
        self._to, self._name, self._rest = to, name, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            with _Connected.one_at_a_time:
                self._to.send((self._name, line))
        return len(text)


def counted(
    what: str, parts: Iterable[T], total: int | None = None, size: Callable[[T], int] = lambda part: 1
) -> Iterator[T]:
    """Yield the parts, and show how much of `total` is done after each; without a total there is no ETA."""
    is_first, done = world.rank() == 0, 0
    started = printed = time.monotonic()
    due = started + _TOLD_EVERY_S if is_first else float("inf")
    for part in parts:
        yield part
        done += size(part)
        now = time.monotonic()
        if now < due:
            continue
        due = now + _TOLD_EVERY_S
        step, eta_s = f"{what} {done}", None
        if total is not None:
            step += f"/{total}"
            eta_s = (now - started) / done * (total - done)
        if not tell(Doing(step, eta_s, is_part=True)) and now - printed >= LINE_EVERY_S:
            print(f"  {step}", flush=True)
            printed = now
    if is_first:
        tell(Doing(""))


def shown(what: str) -> Callable[[list[T]], Iterator[T]]:
    """Return what yields the batches that it gets, and shows how many are done."""
    return lambda batches: counted(what, batches, len(batches))
