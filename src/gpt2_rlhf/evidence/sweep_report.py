"""Compare the points of a sweep: one table, the best point and what can be said of it, a picture.

The best of several points looks better than it is, since chance chose it too. So each other point is compared with it
on the same prompts, and the intervals of these differences hold for all comparisons at once (Bonferroni: of k
comparisons each has level 1 - 0.05 / k).
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.tables import WIDTH, Cell, Row, Table, plain, text
from gpt2_rlhf.store.files import read_json_lines, replacing, write_json
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import manifest

_SHOWN = (metrics.UTILITY, metrics.JUDGE_REWARD, metrics.REWARD, metrics.KL)
_MANNER = (metrics.REFUSALS, metrics.TOXIC)
Samples = Mapping[str, Mapping[str, Any]]  # PPO's answer and its scores, by held-out prompt
_BY = {"judge": metrics.JUDGE_REWARD, "reward": metrics.REWARD, "utility": metrics.UTILITY}


@dataclass(frozen=True)
class Built:
    """A point of a sweep after its run: its label and command, and why it has no figures, None if it has."""

    label: str
    run: Run
    fault: str | None


@dataclass(frozen=True)
class Best:
    """Which measure chose the best point, its place, and every other point's difference to it, by place."""

    by: Metric
    place: int
    behind: Mapping[int, dict[str, Any]]  # best minus this, per prompt


def write(directory: Path, points: Sequence[Built], best_by: str | None) -> str:
    """Write sweep.json, sweep.md and sweep.png into the directory, and return the text for a terminal.

    best_by: "judge", "reward" or "utility"; None chooses one that is comparable between the points.
    """
    directory.mkdir(parents=True, exist_ok=True)
    figures = [None if one.fault else manifest(one.run.last)["metrics"]["models"]["ppo"] for one in points]
    best, why = _best(points, best_by)
    rows = [_row(place, one, figures[place], best) for place, one in enumerate(points)]

    def known(of_all: Sequence[Metric]) -> list[Metric]:
        return [one for one in of_all if any(found is not None and found.get(one.key) for found in figures)]

    shown, manner = known(_SHOWN), known(_MANNER)
    if metrics.JUDGE_REWARD in shown and (best is None or best.by != metrics.REWARD):
        shown.remove(metrics.REWARD)  # what PPO was trained to raise; it would not fit beside the others
    columns = {one.key: one.label for one in shown}
    behind = "behind" if best is not None and best.behind else None
    if behind and best:
        columns[behind] = "Best - this"

    def table(columns: Mapping[str, str], shown: Sequence[Metric], behind: str | None = None) -> Table:
        cells = [_cells(row, found, shown, behind) for row, found in zip(rows, figures, strict=True)]
        return Table("sweep", "Point", columns, cells)

    printed = [plain(table(columns, shown, behind))] if columns else []
    if manner:  # a table of their own, since columns more would be too wide
        printed.append(plain(table({one.key: one.label for one in manner}, manner)))
    lines = [f"{row['point']}: {row['label']}  {row['state']}".rstrip() for row in rows]
    parts = ["\n".join(lines), *printed, textwrap.fill(why, WIDTH)]
    page = "\n\n".join(parts) + "\n"
    write_json(
        directory / "sweep.json",
        {
            "best": None if best is None else best.place + 1,
            "best_by": best and best.by.key,
            "note": why,
            "points": rows,
        },
    )
    with replacing(directory / "sweep.md") as file:
        file.write(page)
    if any(figures):
        _draw(directory / "sweep.png", figures, shown)
    return page


def _row(place: int, one: Built, figures: Mapping[str, Any] | None, best: Best | None) -> dict[str, Any]:
    return {
        "point": place + 1,
        "label": one.label,
        "command": one.run.command,
        "run": one.run.name,
        "state": _state(one, place, best),
        "ppo": None if figures is None else {metric.key: figures.get(metric.key) for metric in (*_SHOWN, *_MANNER)},
        "best_minus_this": None if best is None else best.behind.get(place),
    }


def _state(one: Built, place: int, best: Best | None) -> str:
    if one.fault is not None:
        return f"failed: {one.fault}"
    stopped = manifest(one.run.plans[0]["ppo"])["metrics"]["stopped"]
    state = "" if stopped is None else f"stopped by the guard: {stopped}"
    return f"best{'; ' if state else ''}{state}" if best is not None and place == best.place else state


def _cells(
    row: Mapping[str, Any], figures: Mapping[str, Any] | None, shown: Sequence[Metric], behind: str | None
) -> Row:
    values = [None if figures is None else figures.get(one.key) for one in shown]
    cells = [Cell(text(value, one.unit)) for one, value in zip(shown, values, strict=True)]
    return Row(str(row["point"]), [*cells, *([Cell(text(row["best_minus_this"]))] if behind else [])])


def _best(points: Sequence[Built], best_by: str | None) -> tuple[Best | None, str]:
    """Return the best point and the sentences on it; None and the reason if none can be named."""
    places = [place for place, one in enumerate(points) if one.fault is None]
    if len(places) < 2:
        return None, f"{len(places)} of {len(points)} points have figures; there is nothing to compare."
    samples = {place: _samples(points[place].run) for place in places}
    by = best_by or _comparable([points[place].run for place in places], list(samples.values()))
    if by is None:
        return None, (
            "No point is called the best: the points have different judges and reward models, whose scores do not "
            "compare, and the utility is unknown. Sweep settings of PPO alone, or set sweep.best_by."
        )
    values = {place: _by_prompt(found, by) for place, found in samples.items()}
    if any(None in one.values() for one in values.values()):
        return None, f"No point is called the best: not every point has a {_BY[by].label.lower()}."
    means = {place: float(np.mean(list(one.values()))) for place, one in values.items()}
    place = max(means, key=means.__getitem__)
    level = 1 - 0.05 / (len(places) - 1)
    behind = {other: _difference(values[place], values[other], level) for other in places if other != place}
    unclear = [str(other + 1) for other, one in behind.items() if one is None or one["low"] <= 0]
    whether = f"not distinguishable from point {', '.join(unclear)}" if unclear else "above all others"
    note = (
        f"Best of {len(places)} points by {_BY[by].label.lower()}: point {place + 1}, {whether}. Differences are "
        f"paired by prompt; their intervals hold for all comparisons at once (each is of {100 * level:.3g} %). "
        "The best point's own figures are optimistic, since they chose it; its 95 % interval does not say by how "
        "much. Other intervals are 95 %."
    )
    return Best(_BY[by], place, {other: one for other, one in behind.items() if one is not None}), note


def _comparable(runs: Sequence[Run], samples: Sequence[Samples]) -> str | None:
    """Return by what points can be compared: the judge that all share, or the utility, or the shared reward model."""
    for by, stage in (("judge", "judge"), ("utility", None), ("reward", "reward")):
        if any(None in _by_prompt(one, by).values() for one in samples):
            continue
        if stage is None or len({run.plans[0][stage].directory for run in runs}) == 1:
            return by
    return None


def _samples(run: Run) -> Samples:
    """Return PPO's answers to the held-out prompts, with their scores."""
    lines = read_json_lines(run.plans[0]["evaluate"].directory / "samples.jsonl")
    return {one["prompt"]: one["answers"]["ppo"] for one in lines if one["group"] == "heldout"}


def _by_prompt(samples: Samples, by: str) -> dict[str, Any]:
    """Return what each prompt's answer has by this measure, None if it is not measured."""
    return {prompt: answer[_BY[by].key] for prompt, answer in samples.items()}


def _difference(best: Mapping[str, float], other: Mapping[str, float], level: float) -> dict[str, Any] | None:
    shared = [prompt for prompt in best if prompt in other]
    if not shared:  # points with other data
        return None
    return asdict(bootstrap_mean([best[prompt] - other[prompt] for prompt in shared], level=level))


def _draw(file: Path, figures: Sequence[Mapping[str, Any] | None], shown: Sequence[Metric]) -> None:
    """Draw each metric over the points, with 95 % intervals."""
    from gpt2_rlhf.evidence import curves  # here, since every command would wait for the import of matplotlib

    known = [(place, found) for place, found in enumerate(figures) if found is not None]
    figure, panels = curves.panels(5.0, 2.2, len(shown))
    for number, (axes, metric) in enumerate(zip(panels, shown, strict=True)):
        estimates = [(place, found[metric.key]) for place, found in known if found.get(metric.key) is not None]
        axes.errorbar(
            [place + 1 for place, _ in estimates],
            [one["mean"] for _, one in estimates],
            yerr=curves.reach([one for _, one in estimates]),
            linestyle="none",
            capsize=3,
            marker=curves.MARKERS[number],
            color=curves.COLOURS[number],
        )
        axes.set_title(metric.label, loc="left", fontsize=11)
        axes.set_xticks(range(1, len(figures) + 1))
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("point", fontsize=9)
    with replacing(file, "wb") as opened:
        figure.savefig(opened, dpi=150, format="png")
