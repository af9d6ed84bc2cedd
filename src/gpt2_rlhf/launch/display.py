"""Show what the running tasks do: at the end of a terminal, in lines that are rewritten; in a log, every five seconds.

On a terminal, all that tasks print goes through here, above the lines that are rewritten. In a log they print it
themselves, and figures that were printed once are not printed again.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpt2_rlhf.launch import world
from gpt2_rlhf.launch.progress_line import LINE_EVERY_S, Doing
from gpt2_rlhf.launch.whole_run import Running, in_words

_OVERALL_EVERY_S = 60.0  # in a log

# the tasks that run, seconds that others took, both by directory -> the line on all of them
Overall = Callable[[Mapping[Path, Running], Mapping[Path, float]], str]


@dataclass
class _Shown:
    name: str
    started: float
    printed: float  # when its newest line was printed in a log
    doing: Doing = field(default_factory=lambda: Doing(""))
    told: float = 0.0
    is_new: bool = False

    def eta_s(self, now: float) -> float | None:
        return None if self.doing.eta_s is None else max(0.0, self.doing.eta_s - (now - self.told))

    def line(self, now: float, width: int | None) -> str:
        """Return the line on this task, with as many of its figures as fit."""
        if not self.doing.step:
            return f"  {self.name}  {in_words(now - self.started)} so far"
        eta_s = self.eta_s(now)  # 0 where the last step is done, or takes longer than those before
        line = f"  {self.name} {self.doing.step}" + (f"  eta {in_words(eta_s)}" if eta_s else "")
        for figure in self.doing.figures if self.is_new or width is not None else ():
            if width is not None and len(line) + 2 + len(figure) > width:
                break
            line += f"  {figure}"
        return line


class Display:
    """The lines on the running tasks, by their directories."""

    def __init__(self, overall: Overall | None = None):
        self.is_live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and world.rank() == 0
        self._overall, self._running = overall, dict[Path, _Shown]()
        self._took: dict[Path, float] = {}
        self._drawn: list[str] = []
        self._overall_printed = 0.0

    def start(self, directory: Path, name: str) -> None:
        """Show a task that starts."""
        now = time.monotonic()
        self._running[directory] = _Shown(name, now, now)
        self._overall_printed = 0.0

    def end(self, directory: Path) -> None:
        """Show a task no longer, so that what it came to can be printed."""
        self._took[directory] = time.monotonic() - self._running.pop(directory).started
        self._draw([])

    def receive(self, directory: Path, message: Doing | tuple[str, str]) -> None:
        """Take what a task does, or a line that it printed on this stream."""
        if isinstance(message, Doing):
            shown = self._running[directory]
            shown.doing, shown.told, shown.is_new = message, time.monotonic(), True
            return
        self._draw([])
        stream, line = message
        print(line, file=getattr(sys, stream), flush=True)

    def refresh(self) -> None:
        """Show the newest lines, if it is time for that."""
        now = time.monotonic()
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be rewritten
            lines = [self._overall_line(now), *(one.line(now, width) for one in self._running.values())]
            self._draw([line[:width] for line in lines if line])
        elif world.rank() == 0:
            if self._overall is not None and now - self._overall_printed >= _OVERALL_EVERY_S:
                print(f"{self._overall_line(now)}: {', '.join(one.name for one in self._running.values())}", flush=True)
                self._overall_printed = now
            for one in self._running.values():
                if now - one.printed >= LINE_EVERY_S:
                    print(one.line(now, None), flush=True)
                    one.printed, one.is_new = now, False

    def leave(self) -> None:
        """Leave the lines where they are, since something was printed below them."""
        self._drawn = []

    def _overall_line(self, now: float) -> str:
        running = {
            place: Running(now - one.started, one.eta_s(now), one.doing.is_part) for place, one in self._running.items()
        }
        return self._overall(running, self._took) if self._overall is not None and running else ""

    def _draw(self, lines: list[str]) -> None:
        if lines == self._drawn:
            return
        up = f"\x1b[{len(self._drawn) - 1}A" if len(self._drawn) > 1 else ""
        erased = f"{up}\r\x1b[J" if self._drawn else ""
        print(end=erased + "\n".join(lines), flush=True)
        self._drawn = lines
