"""Show how much of some work is done, and when it will be: one line, rewritten on a terminal, repeated in a log."""

import shutil
import sys
import time

from gpt2_rlhf.launch import world

_FIRST_AFTER_S, _LINE_EVERY_S = 1.0, 4.0  # shorter work shows nothing


def can_rewrite() -> bool:
    """Whether the last line is on a terminal, and of this task alone."""
    return sys.stdout.isatty() and not world.is_side_by_side()


def rewrite(line: str) -> None:
    """Replace the terminal's last line; it is cut to the width, since a line that wraps cannot be replaced."""
    width = shutil.get_terminal_size().columns - 1
    print(f"\r{line[:width]:<{width}}", end="", flush=True)


class ProgressLine:
    """Counts what is done of `total`; None: how many there are is not known, so there is no ETA."""

    def __init__(self, what: str, total: int | None = None):
        self._what, self._total, self._done, self._shown = what, total, 0, False
        self._started = time.monotonic()
        self._due = self._started + _FIRST_AFTER_S if world.rank() == 0 else float("inf")
        self._rewrites_line = can_rewrite()

    def add(self, count: int = 1) -> None:
        """Count work that is done, and show the line if it is due."""
        self._done += count
        now = time.monotonic()
        if now < self._due:
            return
        self._shown = True
        self._due = now + (_LINE_EVERY_S if not self._rewrites_line else 0.2)
        line = f"  {self._what} {self._done}"
        if self._total is not None:
            line += f"/{self._total}  eta {(now - self._started) / self._done * (self._total - self._done):.0f} s"
        if self._rewrites_line:
            rewrite(line)
        else:
            print(line, flush=True)

    def end(self) -> None:
        """Clear the line on a terminal, for what is printed next; a log gets the last count."""
        if self._rewrites_line:
            rewrite("")
            print("\r", end="", flush=True)
        elif self._shown:
            print(f"  {self._what} {self._done}", flush=True)
