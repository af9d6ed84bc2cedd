"""Compare the points of a sweep: one table, the best point and what can be said of it, a picture.

The best of several points looks better than it is, since chance chose it too. So each other point is compared with it
on the same prompts, and the intervals of these differences hold for all comparisons at once (Bonferroni: of k
comparisons each has level 1 - 0.05 / k). A point with several seeds has their mean at each prompt. Points that differ
in their method are shown beside what their training took, and beside best-of-n, which needs none.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import summary
from gpt2_rlhf.evidence.comparison import BEST_OF_N
from gpt2_rlhf.evidence.intervals import Estimate, bootstrap_mean
from gpt2_rlhf.evidence.tables import WIDTH, Table, plain, text, text_row
from gpt2_rlhf.store.files import read_json_lines, replacing, write_json
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import manifest

_SHOWN = (metrics.UTILITY, metrics.JUDGE_REWARD, metrics.REWARD, metrics.KL)
_MANNER = (metrics.REFUSALS, metrics.TOXIC)
_OF_METHODS = (*_SHOWN, *metrics.WINS_VS_SFT, metrics.TOKENS, metrics.EOS_RATE)
_COST = (
    Metric("episodes", "Answers learnt from", "count"),
    Metric("generated_tokens", "Tokens sampled", "count"),
    Metric("train_rows", "Pairs learnt from", "count"),
    Metric("work_s", "Training", "seconds"),
)
_BY = {"judge": metrics.JUDGE_REWARD, "reward": metrics.REWARD, "utility": metrics.UTILITY}

Samples = Mapping[str, Mapping[str, float | None]]  # what the policy's answers have, by key of _BY and held-out prompt


@dataclass(frozen=True)
class Built:
    """A point of a sweep after its run: its label and command, and why it has no figures, None if it has."""

    label: str
    run: Run
    fault: str | None

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The policy's; of several seeds mean, SD, lowest (`low`) and highest (`high`) of their means."""
        if self.fault is not None:
            return {}
        found = [manifest(plan["evaluate"])["metrics"]["models"][self.run.settings.method] for plan in self.run.plans]
        if len(found) == 1:
            return found[0]
        shown = (*_OF_METHODS, *_MANNER)
        spreads = {one.key: summary.over_seeds([of.get(one.key) for of in found]) for one in shown}
        return {key: one and {**one, "low": one["min"], "high": one["max"]} for key, one in spreads.items()}

    @cached_property
    def cost(self) -> dict[str, float] | None:
        """What the training of one policy took, as the mean over seeds; nothing that only measures is counted."""
        if self.fault is not None:
            return None
        found = []
        for policy in (plan[self.run.settings.method] for plan in self.run.plans):
            record = manifest(policy)
            took = {one.key: record["metrics"].get(one.key, 0) for one in _COST} | {"work_s": record["work_s"]}
            if self.run.settings.method == "ppo":
                logged = read_json_lines(policy.directory / "metrics.jsonl")
                tokens = sum(one.get("answer/tokens", 0.0) for one in logged)
                took["generated_tokens"] = tokens * record["metrics"]["episodes_per_update"]
            found.append(took)
        return {one.key: float(np.mean([took[one.key] for took in found])) for one in _COST}


@dataclass(frozen=True)
class Best:
    """The sentences on the best point, and if one can be named: its measure and place, and the others' differences."""

    note: str
    by: Metric | None = None
    place: int | None = None
    behind: Mapping[int, Estimate] = field(default_factory=dict)  # by place: best minus this, per prompt


def write(directory: Path, points: Sequence[Built], best_by: str | None) -> str:
    """Write sweep.json, sweep.md and sweep.png into the directory, and return the text for a terminal.

    best_by: "judge", "reward" or "utility"; None chooses one that is comparable between the points.
    """
    by_place = dict(enumerate(points, start=1))
    best = _best(by_place, best_by)
    rows = [_row(place, one, best) for place, one in by_place.items()]

    def known(of_all: Sequence[Metric]) -> list[Metric]:
        return [one for one in of_all if any(point.figures.get(one.key) for point in points)]

    shown, manner = known(_SHOWN), known(_MANNER)
    if metrics.JUDGE_REWARD in shown and best.by != metrics.REWARD:
        shown.remove(metrics.REWARD)  # what PPO was trained to raise; it would not fit beside the others
    by_point = (_by_point(by_place, shown, best.behind), _by_point(by_place, manner, {}))  # one would be too wide
    lines = [f"{row['point']}: {row['label']}  {row['state']}".rstrip() for row in rows]
    parts = ["\n".join(lines), *(plain(one) for one in by_point if one.columns), textwrap.fill(best.note, WIDTH)]
    if any(len(one.run.plans) > 1 for one in points):
        parts.append("Of a point with several seeds, brackets have the lowest and the highest of their means.")
    found: dict[str, Any] = {"best": best.place, "best_by": best.by and best.by.key, "note": best.note, "points": rows}
    if len({one.run.settings.method for one in points}) > 1:
        best_of_n = _best_of_n(points)
        parts.append(plain(_of_methods(points, best_of_n)))
        found["points"] = [{**row, "cost": one.cost} for row, one in zip(rows, points, strict=True)]
        found |= {"best_of_n": best_of_n} if best_of_n else {}
    page = "\n\n".join(parts) + "\n"
    write_json(directory / "sweep.json", found)
    with replacing(directory / "sweep.md") as file:
        file.write(page)
    if any(one.figures for one in points):
        _draw(directory / "sweep.png", by_place, shown)
    return page


def _row(place: int, one: Built, best: Best) -> dict[str, Any]:
    shown = (*(_SHOWN if len(one.run.plans) == 1 else _OF_METHODS), *_MANNER)
    return {
        "point": place,
        "label": one.label,
        "command": one.run.command,
        "run": one.run.name,
        "state": _state(one, place, best),
        one.run.settings.method: {metric.key: one.figures.get(metric.key) for metric in shown} if one.figures else None,
        "best_minus_this": best.behind.get(place),
    }


def _state(one: Built, place: int, best: Best) -> str:
    if one.fault is not None:
        return f"failed: {one.fault}"
    policies = [plan[one.run.settings.method] for plan in one.run.plans]
    stopped = {policy.seed: manifest(policy)["metrics"]["stopped"] for policy in policies}
    reasons = [f"{f'seed {seed}: ' if len(stopped) > 1 else ''}{why}" for seed, why in stopped.items() if why]
    state = f"stopped by the guard: {'; '.join(reasons)}" if reasons else ""
    return f"best{'; ' if state else ''}{state}" if place == best.place else state


def _by_point(points: Mapping[int, Built], shown: Sequence[Metric], behind: Mapping[int, Any]) -> Table:
    """Return these metrics of each point, and its difference to the best one if any is known."""
    columns = {one.key: one.label for one in shown} | ({"behind": "Best - this"} if behind else {})
    rows = []
    for place, point in points.items():
        texts = [text(point.figures.get(one.key), one.unit) for one in shown]
        rows.append(text_row(str(place), *texts, *([text(behind.get(place))] if behind else [])))
    return Table("sweep", "Point", columns, rows)


def _best(points: Mapping[int, Built], best_by: str | None) -> Best:
    """Return the best point; only the reason if none can be named."""
    runs = {place: one.run for place, one in points.items() if one.fault is None}
    if len(runs) < 2:
        return Best(f"{len(runs)} of {len(points)} points have figures; there is nothing to compare.")
    samples = {place: _samples(run) for place, run in runs.items()}
    by = best_by or _comparable(runs, samples)
    if by is None:
        return Best(
            "No point is called the best: the points have different judges and reward models, whose scores do not "
            "compare, and the utility is unknown. Sweep settings of PPO alone, or set sweep.best_by."
        )
    label = _BY[by].label.lower()
    values: dict[int, Mapping[str, Any]] = {place: found[by] for place, found in samples.items()}
    if any(None in one.values() for one in values.values()):
        return Best(f"No point is called the best: not every point has a {label}.")
    means = {place: float(np.mean(list(one.values()))) for place, one in values.items()}
    place = max(means, key=means.__getitem__)
    level = 1 - 0.05 / (len(runs) - 1)
    behind = {other: _difference(values[place], values[other], level) for other in runs if other != place}
    unclear = [str(other) for other, one in behind.items() if one is None or one["low"] <= 0]
    whether = f"not distinguishable from point {', '.join(unclear)}" if unclear else "above all others"
    note = (
        f"Best of {len(runs)} points by {label}: point {place}, {whether}. Differences are "
        f"paired by prompt; their intervals hold for all comparisons at once (each is of {100 * level:.3g} %). "
        "The best point's own figures are optimistic, since they chose it; its 95 % interval does not say by how "
        "much. Other intervals are 95 %."
    )
    return Best(note, _BY[by], place, {other: one for other, one in behind.items() if one is not None})


def _comparable(runs: Mapping[int, Run], samples: Mapping[int, Samples]) -> str | None:
    """Return by what points can be compared: the judge that all share, or the utility, or the shared reward model."""
    for by in ("judge", "utility", "reward"):
        is_known = all(None not in one[by].values() for one in samples.values())
        if is_known and (by == "utility" or len({run.plans[0][by].directory for run in runs.values()}) == 1):
            return by
    return None


def _samples(run: Run) -> Samples:
    """Return what the policy's answers to the held-out prompts have by each measure, as the mean over its seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for plan in run.plans:
        for line in read_json_lines(plan["evaluate"].directory / "samples.jsonl"):
            if line["group"] == "heldout":
                found.setdefault(line["prompt"], []).append(line["answers"][run.settings.method])
    return {
        by: {prompt: _mean([one[metric.key] for one in given]) for prompt, given in found.items()}
        for by, metric in _BY.items()
    }


def _mean(values: Sequence[Any]) -> float | None:
    return None if None in values else float(np.mean(values))


def _best_of_n(points: Sequence[Built]) -> dict[str, Any]:
    """Return the figures of best-of-n, if all points have the same up to rounding: SFT and reward model decide them."""
    found = [manifest(one.run.last)["metrics"]["models"].get(BEST_OF_N) for one in points if one.fault is None]
    if not found or None in found:
        return {}
    # scores round by the batch that they are in, which also has the answers of the point's own policy
    shown = [[text(one.get(metric.key), metric.unit) for metric in _OF_METHODS] for one in found]
    return found[0] if all(one == shown[0] for one in shown) else {}


def _of_methods(points: Sequence[Built], best_of_n: Mapping[str, Any]) -> Table:
    """Return each metric of each point, of best-of-n, and of what the training took, one below the other."""
    rows = []
    labels = [one.label.removeprefix("method=") for one in points]
    labels = [methods.LABELS.get(label, label) for label in labels]
    for metric in _OF_METHODS:
        for label, found in zip([*labels, "best of n"], [*(one.figures for one in points), best_of_n], strict=True):
            if (value := found.get(metric.key)) is not None:
                mean, sd = (text(one, metric.unit) for one in (value, value.get("sd")))
                rows.append(text_row(f"{metric.title}: {label}", mean, sd, str(value["n"]) if "sd" in value else "1"))
    for metric in _COST:
        for label, point in zip(labels, points, strict=True):
            if point.cost is not None:
                took = point.cost[metric.key] if metric.unit == "seconds" else round(point.cost[metric.key])
                rows.append(text_row(f"{metric.title}: {label}", text(took, metric.unit), "", ""))
    return Table("methods", "Method", {"mean": "Mean", "sd": "SD over seeds", "seeds": "Seeds"}, rows)


def _difference(best: Mapping[str, float], other: Mapping[str, float], level: float) -> Estimate | None:
    shared = [prompt for prompt in best if prompt in other]
    if not shared:  # points with other data
        return None
    return bootstrap_mean([best[prompt] - other[prompt] for prompt in shared], level=level)


def _draw(file: Path, points: Mapping[int, Built], shown: Sequence[Metric]) -> None:
    """Draw each metric over the points, with 95 % intervals."""
    from gpt2_rlhf.evidence import curves  # here, since every command would wait for the import of matplotlib

    figure, panels = curves.panels(5.0, 2.2, len(shown))
    for number, (axes, metric) in enumerate(zip(panels, shown, strict=True)):
        known = {place: found for place, one in points.items() if (found := one.figures.get(metric.key))}
        axes.errorbar(
            list(known),
            [one["mean"] for one in known.values()],
            yerr=curves.reach(list(known.values())),
            linestyle="none",
            capsize=3,
            marker=curves.MARKERS[number],
            color=curves.COLOURS[number],
        )
        axes.set_title(metric.label, loc="left", fontsize=11)
        axes.set_xticks(list(points))
    panels[-1].set_xlabel("point", fontsize=9)
    curves.save(figure, file, dpi=150)
