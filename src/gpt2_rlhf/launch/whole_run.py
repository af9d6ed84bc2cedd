"""How long the whole run will still take: the check before training writes what it expects, and each stage reads it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_rlhf.store.files import write_json
from gpt2_rlhf.store.stage import Stage, manifest


@dataclass(frozen=True)
class Expected:
    """Seconds around one stage: expected of it, of what follows it, of what is built; and what the latter took."""

    own_s: float
    later_s: float
    built_s: float
    took_s: float

    def rest_s(self, elapsed_s: float, eta_s: float) -> float:
        """Return the seconds to the end of the run: what follows is expected to be as much slower as what was built."""
        pace = (self.took_s + elapsed_s + eta_s) / (self.built_s + self.own_s)
        return eta_s + pace * self.later_s


def ends(stages: Sequence[Stage], seconds: Mapping[str, float], at_once: int) -> dict[Path, float]:
    """Return when each stage is expected to end, by directory: as `tasks.run_all` starts them, from second 0.

    seconds: of each stage by name; what is not among the stages is built already.
    """
    found: dict[Path, float] = {}
    waiting, running = list(stages), list[Stage]()
    now = 0.0
    while waiting or running:
        for stage in list(waiting):
            undone = {one.directory for one in (*waiting, *running)}
            if len(running) < at_once and not any(need.directory in undone for need in stage.needs.values()):
                waiting.remove(stage)
                running.append(stage)
                found[stage.directory] = now + seconds[stage.name]
        first = min(running, key=lambda stage: found[stage.directory])
        running.remove(first)
        now = found[first.directory]
    return found


def write(stages: Sequence[Stage], seconds: Mapping[str, float], at_once: int) -> float:
    """Write what is expected of each stage for `read`, beside them, and return the seconds of all."""
    end = ends(stages, seconds, at_once)
    last = max(end.values())
    own = {
        one.directory.name: {"own_s": seconds[one.name], "later_s": last - end[one.directory], "at": time.time()}
        for one in stages
    }
    place = _place(stages[0])
    write_json(place, {**_read(place), **own})
    return last


def read(stage: Stage) -> Expected | None:
    """Return what is expected around a stage, or None if nothing was written for it."""
    written = _read(_place(stage))
    own = written.get(stage.directory.name)
    if own is None:
        return None
    built = [
        (written[need.directory.name]["own_s"], manifest(need)["wall_s"])
        for need in stage.needs.values()
        if need.directory.name in written
        and (need.directory / "manifest.json").stat().st_mtime > written[need.directory.name]["at"]  # in this run
    ]
    return Expected(own["own_s"], own["later_s"], *(sum(column) for column in zip((0.0, 0.0), *built, strict=True)))


def in_words(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _place(stage: Stage) -> Path:
    return stage.directory.with_name(".expected.json")


def _read(place: Path) -> dict[str, dict[str, float]]:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet; it is only for the progress line
        return {}
