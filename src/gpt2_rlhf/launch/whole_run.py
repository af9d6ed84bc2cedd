"""How long a run will still take: the check before training writes what it expects of each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_rlhf.store.files import read_json, write_json
from gpt2_rlhf.store.stage import Stage


@dataclass(frozen=True)
class Running:
    """A stage that runs: seconds since its start, and until its end or, if is_part, until the end of a part of it."""

    elapsed_s: float
    eta_s: float | None
    is_part: bool = False

    @property
    def whole_s(self) -> float | None:
        """The seconds that the stage takes in all, if they are known."""
        return None if self.eta_s is None or self.is_part else self.elapsed_s + self.eta_s

    def left_s(self, expected_s: float) -> float:
        """Return the seconds until its end, where it was expected to take so many in all."""
        return max(self.eta_s or 0.0, (self.whole_s or expected_s) - self.elapsed_s)


def ends(stages: Sequence[Stage], seconds: Mapping[Path, float], at_once: int) -> dict[Path, float]:
    """Return when each stage is expected to end, by directory: as `tasks.run_all` starts them, from second 0.

    What is not among the stages is built already.
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
                found[stage.directory] = now + seconds[stage.directory]
        first = min(running, key=lambda stage: found[stage.directory])
        running.remove(first)
        now = found[first.directory]
    return found


def left_s(
    stages: Sequence[Stage],
    expected: Mapping[Path, float],
    running: Mapping[Path, Running],
    took: Mapping[Path, float],
    at_once: int,
) -> float | None:
    """Return the seconds until the stages are built; None if nothing is expected of one of them.

    took: seconds of those that are built. What has no ETA is expected to be as much slower as the others are.
    """
    undone = [one for one in stages if one.directory not in took]
    if any(one.directory not in expected for one in undone):
        return None
    known = {place: whole_s for place, one in running.items() if (whole_s := one.whole_s) is not None}
    known |= {place: seconds for place, seconds in took.items() if place in expected}
    pace = sum(known.values()) / sum(expected[place] for place in known) if known else 1.0
    seconds = {one.directory: pace * expected[one.directory] for one in undone}
    seconds |= {place: one.left_s(seconds[place]) for place, one in running.items()}
    undone.sort(key=lambda one: one.directory not in running)  # those that run have begun
    return max(ends(undone, seconds, at_once).values(), default=0.0)


def write(stages: Sequence[Stage], seconds: Mapping[Path, float], at_once: int) -> float:
    """Write what is expected of each stage for `read`, beside them, and return the seconds of all."""
    write_json(_file(stages[0]), {**_read(_file(stages[0])), **{path.name: one for path, one in seconds.items()}})
    return max(ends(stages, seconds, at_once).values())


def read(stages: Sequence[Stage]) -> dict[Path, float]:
    """Return the seconds that are expected of the stages, of those for which they were written."""
    written = _read(_file(stages[0])) if stages else {}
    return {one.directory: written[one.directory.name] for one in stages if one.directory.name in written}


def in_words(seconds: float) -> str:
    """Return a duration as text."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


def _file(stage: Stage) -> Path:
    return stage.directory.with_name(".expected.json")


def _read(file: Path) -> dict[str, float]:
    try:
        return {name: float(seconds) for name, seconds in read_json(file).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or of another version
        return {}
