"""Describe faults: which call fails, how, and how often."""

import threading
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "status",  # answer with `status` and do nothing
    "html",  # the same with an HTML page, as a gateway does
    "reset",  # cut the connection after half of the upload, and do nothing
    "lost",  # do it, and cut the connection without an answer
    "hang",  # accept, and send nothing until the hub is closed
    "late",  # send nothing until the next request for the call arrives, then do this one before it
    "truncate",  # send half of the body
    "flip",  # send the body with one byte changed
]


@dataclass(frozen=True)
class Fault:
    """A fault of the next `times` requests for `call`, a name in server.ROUTES."""

    call: str
    kind: Kind
    times: int = 1
    status: int = 500
    retry_after_s: int | None = None


class Faults:
    """The faults that have not happened yet. Requests come from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[Fault, int]] = []

    def add(self, fault: Fault) -> None:
        """Add a fault; it happens after those that were added before it."""
        with self._lock:
            self._left.append((fault, fault.times))

    def take(self, call: str) -> Fault | None:
        """Return the fault for this request, if there is one, and count it down."""
        with self._lock:
            for index, (fault, left) in enumerate(self._left):
                if fault.call == call and left > 0:
                    self._left[index] = (fault, left - 1)
                    return fault
        return None

    def left(self) -> int:
        """Return how many have not happened yet."""
        with self._lock:
            return sum(left for _, left in self._left)

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._left.clear()
