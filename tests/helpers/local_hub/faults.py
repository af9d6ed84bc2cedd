"""Faults as records: which call, what happens to it, how often."""

import threading
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "status",  # answer with `status` and do nothing
    "html",  # the same with a page, as a gateway does
    "reset",  # cut the connection, after half of what is uploaded, and do nothing
    "lost",  # do it, and cut the connection without an answer
    "hang",  # accept, and say nothing until the hub is closed
    "late",  # say nothing until the next request for the call is there, then do this one before it
    "truncate",  # send half of the body
    "flip",  # send the body with one byte changed
]


@dataclass(frozen=True)
class Fault:
    """What happens to the next `times` requests for `call`, a name of server.ROUTES."""

    call: str
    kind: Kind
    times: int = 1
    status: int = 500
    retry_after_s: int | None = None


class Faults:
    """The faults that are still to come. Requests come from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: list[tuple[Fault, int]] = []

    def add(self, fault: Fault) -> None:
        """Have it happen from now on, after those that were added before it."""
        with self._lock:
            self._left.append((fault, fault.times))

    def take(self, call: str) -> Fault | None:
        """The fault for this request, counted down."""
        with self._lock:
            for index, (fault, left) in enumerate(self._left):
                if fault.call == call and left > 0:
                    self._left[index] = (fault, left - 1)
                    return fault
        return None

    def left(self) -> int:
        """How many are still to come."""
        with self._lock:
            return sum(left for _, left in self._left)

    def clear(self) -> None:
        """From now on all is well."""
        with self._lock:
            self._left.clear()
