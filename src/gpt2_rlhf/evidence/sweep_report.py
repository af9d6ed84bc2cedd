"""Compare the points of a sweep: one table, the best point and what can be said of it, a picture.

The best of several points looks better than it is, since chance chose it too. So each other point is compared with it
on the same prompts, and the intervals of these differences hold for all comparisons at once (Bonferroni: of k
comparisons each has level 1 - 0.05 / k). A point with several seeds has their mean at each prompt. Points that differ
in their method are shown beside what their training took, and beside best-of-n, which needs none.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import seeds
from gpt2_rlhf.evidence.comparison import BEST_OF_N
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.tables import WIDTH, Cell, Row, Table, plain, text
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
Samples = Mapping[str, Mapping[str, float | None]]  # what the policy's answers have by each measure, by held-out prompt
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
    figures = [None if one.fault else _figures(one.run) for one in points]
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
    if any(len(one.run.plans) > 1 for one in points):
        parts.append("Of a point with several seeds, brackets have the lowest and the highest of their means.")
    best_of_n = None
    if len({one.run.settings.method for one in points}) > 1:
        best_of_n, costs = _best_of_n(points), [None if one.fault else _cost(one.run) for one in points]
        parts.append(plain(_of_methods(points, figures, costs, best_of_n)))
        rows = [{**row, "cost": cost} for row, cost in zip(rows, costs, strict=True)]
    page = "\n\n".join(parts) + "\n"
    write_json(
        directory / "sweep.json",
        {
            "best": None if best is None else best.place + 1,
            "best_by": best and best.by.key,
            "note": why,
            "points": rows,
            **({"best_of_n": best_of_n} if best_of_n else {}),
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
        one.run.settings.method: figures
        and {metric.key: figures.get(metric.key) for metric in (*_shown_of(one.run), *_MANNER)},
        "best_minus_this": None if best is None else best.behind.get(place),
    }


def _state(one: Built, place: int, best: Best | None) -> str:
    if one.fault is not None:
        return f"failed: {one.fault}"
    policies = [plan[one.run.settings.method] for plan in one.run.plans]
    stopped = {policy.seed: manifest(policy)["metrics"]["stopped"] for policy in policies}
    reasons = [f"{f'seed {seed}: ' if len(stopped) > 1 else ''}{why}" for seed, why in stopped.items() if why]
    state = f"stopped by the guard: {'; '.join(reasons)}" if reasons else ""
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
    values: dict[int, dict[str, Any]] = {place: _by_prompt(found, by) for place, found in samples.items()}
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
    """Return what the policy's answers to the held-out prompts have by each measure, as the mean over its seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for plan in run.plans:
        for line in read_json_lines(plan["evaluate"].directory / "samples.jsonl"):
            if line["group"] == "heldout":
                found.setdefault(line["prompt"], []).append(line["answers"][run.settings.method])
    return {
        prompt: {one.key: _mean([of[one.key] for of in given]) for one in _BY.values()}
        for prompt, given in found.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _figures(run: Run) -> dict[str, Any]:
    """Return the policy's figures; of several seeds mean, SD, lowest (`low`) and highest (`high`) of their means."""
    found = [manifest(plan["evaluate"])["metrics"]["models"][run.settings.method] for plan in run.plans]
    if len(found) == 1:
        return found[0]
    shown = (*_OF_METHODS, *_MANNER)
    spreads = {one.key: seeds.over_seeds([of.get(one.key) for of in found]) for one in shown}
    return {key: one and {**one, "low": one["min"], "high": one["max"]} for key, one in spreads.items()}


def _shown_of(run: Run) -> Sequence[Metric]:
    return _SHOWN if len(run.plans) == 1 else _OF_METHODS


def _cost(run: Run) -> dict[str, float]:
    """Return what the training of one policy took, as the mean over seeds; nothing that only measures is counted."""
    found = []
    for policy in (plan[run.settings.method] for plan in run.plans):
        record = manifest(policy)
        took = {one.key: record["metrics"].get(one.key, 0) for one in _COST} | {"work_s": record["work_s"]}
        if run.settings.method == "ppo":
            logged = read_json_lines(policy.directory / "metrics.jsonl")
            tokens = sum(one.get("answer/tokens", 0.0) for one in logged)
            took["generated_tokens"] = tokens * record["metrics"]["episodes_per_update"]
        found.append(took)
    return {one.key: float(np.mean([took[one.key] for took in found])) for one in _COST}


def _best_of_n(points: Sequence[Built]) -> dict[str, Any] | None:
    """Return the figures of best-of-n, if all points have the same up to rounding: SFT and reward model decide them."""
    found = [manifest(one.run.last)["metrics"]["models"].get(BEST_OF_N) for one in points if one.fault is None]
    if not found or None in found:
        return None
    # scores round by the batch that they are in, which also has the answers of the point's own policy
    shown = [[text(one.get(metric.key), metric.unit) for metric in _OF_METHODS] for one in found]
    return found[0] if all(one == shown[0] for one in shown) else None


def _of_methods(
    points: Sequence[Built],
    figures: Sequence[Mapping[str, Any] | None],
    costs: Sequence[Mapping[str, float] | None],
    best_of_n: Mapping[str, Any] | None,
) -> Table:
    """Return each metric of each point, of best-of-n, and of what the training took, one below the other."""
    rows = []
    named = [(one.label.removeprefix("method="), found) for one, found in zip(points, figures, strict=True)]
    named = [(methods.LABELS.get(label, label), found) for label, found in named]
    for metric in _OF_METHODS:
        for label, found in [*named, ("best of n", best_of_n)]:
            value = found and found.get(metric.key)
            if value is not None:
                sd = value.get("sd")
                cells = [Cell(text(value, metric.unit)), Cell("-" if sd is None else text(sd, metric.unit))]
                rows.append(Row(f"{metric.title}: {label}", [*cells, Cell(str(value["n"]) if "sd" in value else "1")]))
    for metric in _COST:
        for (label, _), cost in zip(named, costs, strict=True):
            if cost is not None:
                took = cost[metric.key] if metric.unit == "seconds" else round(cost[metric.key])
                rows.append(Row(f"{metric.title}: {label}", [Cell(text(took, metric.unit)), Cell(""), Cell("")]))
    return Table("methods", "Method", {"mean": "Mean", "sd": "SD over seeds", "seeds": "Seeds"}, rows)


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
    panels[-1].set_xlabel("point", fontsize=9)
    curves.save(figure, file, dpi=150)
