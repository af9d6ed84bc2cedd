"""Turn a run's logs, samples and manifests into the pictures of its report, legible on a phone.

Every picture has one column of panels. A model has the same colour everywhere, and differs in marker or line as well,
for those who print or see without colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.evidence import curves, results
from gpt2_rlhf.evidence.curves import COLOURS, MARKERS
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured, summary
from gpt2_rlhf.evidence.tables import text

Sample = Mapping[str, Any]  # a line of samples.jsonl

_WIDTH_IN, _HEIGHT_IN, _DPI = 5.0, 3.1, 180  # 900 pixels wide: twice a phone's and a half-page column's
_LINES = (("0.35", ":"), (COLOURS[0], "--"), (COLOURS[1], "-"))  # of base, SFT and the policy
_REWARD_MODELS = {"reward": "Reward model", "judge": "Judge"}
_BINS = 30
_PERCENT = "{x:.0%}"  # of the ticks of an axis of shares


@dataclass(frozen=True)
class Picture:
    """A drawn figure, the name of its file, its title, and a description for readers who cannot see it."""

    file: str
    title: str
    alt: str
    figure: Figure

    def save(self, directory: Path) -> bytes:
        """Write it as PNG, and return the bytes."""
        curves.save(self.figure, directory / self.file, _DPI)
        return (directory / self.file).read_bytes()


def pictures(run_dir: Path, records: Mapping[str, Mapping[str, Any]], samples: Sequence[Sample]) -> list[Picture]:
    """Return all pictures of a run, in the order of the page. samples: the held-out ones."""
    method = methods.of(records)
    history = curves.heldout(run_dir / method)
    rewards = {name: records[name]["metrics"] for name in _REWARD_MODELS if name in records}
    is_by_function = results.reward_function({**records, "manifests": records}) is not None
    reward_label = results.FUNCTION_SCORE if is_by_function else metrics.REWARD.label
    logged, kept_update = curves.logged(run_dir / method), records[method]["metrics"]["kept_update"]
    return [
        _training(history, kept_update, reward_label) if history[1:] else _logged(method, logged),
        _distributions(method, samples, "reward", metrics.REWARD),
        _distributions(method, samples, "tokens", metrics.TOKENS),
        _accuracy(rewards),
        _calibration(rewards),
        _sft(curves.logged(run_dir / "sft"), records["sft"]["metrics"]),
        *(_reward_model(name, curves.logged(run_dir / name), report) for name, report in rewards.items()),
        _policy(method, logged, history),
    ]


def _distributions(method: str, samples: Sequence[Sample], key: str, metric: Metric) -> Picture:
    models = results.three_models(method)
    values = {name: np.array([one["answers"][name][key] for one in samples], dtype=float) for name in models}
    every = np.concatenate(list(values.values()))
    bins = np.histogram_bin_edges(every, bins=_BINS).tolist()
    if key == "tokens":  # bins of whole tokens: otherwise some would hold one length and others two
        width = max(1, round((every.max() - every.min()) / _BINS))
        bins = np.arange(every.min() - 0.5, every.max() + width + 0.5, width).tolist()
    figure, (axes,) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 1)
    for (name, model), (colour, line) in zip(models.items(), _LINES, strict=True):
        axes.hist(values[name], bins=bins, histtype="step", color=colour, linestyle=line, linewidth=1.8, label=model)
    axes.hist(values[method], bins=bins, color=COLOURS[1], alpha=0.15)
    means = ", ".join(f"{model} {text(float(values[name].mean()))}" for name, model in models.items())
    alt = f"Histograms of {metric.axis.lower()} over {len(samples)} held-out prompts. Means: {means}."
    _label(figure, metric.axis, f"prompts of {len(samples)}")
    return Picture(f"{key}-distribution.png", f"{metric.label} before and after", alt, figure)


def _training(history: Sequence[Measured], kept_update: int, reward_label: str) -> Picture:
    """Draw what changed since the SFT model while PPO trained, and the KL: PPO over-optimises where only reward rises.

    history: at least two measurements; the first is of the SFT model. reward_label: the name of what PPO raises.
    """
    figure, (changes, kl) = curves.panels(_WIDTH_IN, _HEIGHT_IN / 2, 2, heights=(5, 2))
    kl.sharex(changes)
    updates = [one.update for one in history]
    kept = updates.index(kept_update) if kept_update in updates else -1
    ends, found = list[tuple[float, str]](), list[str]()
    for place, metric in enumerate(reversed(metrics.MEASURES), start=1):  # colours as in the panel of all rewards
        values = [getattr(one, metric.key) for one in history]
        if values[0] is None:
            continue
        since_sft = [bootstrap_mean(one - values[0]) for one in values]
        label = reward_label if metric is metrics.REWARD else metric.label
        means, lows, highs = ([one[key] for one in since_sft] for key in ("mean", "low", "high"))
        changes.plot(updates, means, color=COLOURS[place], marker=MARKERS[place], markersize=4, clip_on=False)
        changes.fill_between(updates, lows, highs, color=COLOURS[place], alpha=0.12, linewidth=0)
        ends.append((means[-1], f"{label} {means[-1]:+z.2f}"))
        found.append(f"{label.lower()} changed by {text(since_sft[kept], metric.unit)}")
    _label_ends(changes, ends)
    nats = [float(one.kl_nats.mean()) for one in history if one.kl_nats is not None]
    if len(nats) == len(history):
        kl.plot(updates, nats, color="0.35", marker="o", markersize=4, clip_on=False)
        _label_ends(kl, [(nats[-1], f"KL {nats[-1]:.2f}")])
        found.append(f"the KL to SFT reached {text(nats[kept])} nats")
    for axes, label in ((changes, "change from SFT, points"), (kl, "KL, nats")):
        axes.axvline(kept_update, color="0.35", linestyle=":", linewidth=1)
        axes.set_ylabel(label, fontsize=9)
        axes.tick_params(labelsize=9)
        axes.margins(x=0)
        axes.spines[["top", "right"]].set_visible(False)
    changes.axhline(0, color="0.35", linewidth=0.8)
    changes.tick_params(labelbottom=False)
    side = "left" if kept_update < updates[-1] / 2 else "right"
    above = {"transform": changes.get_xaxis_transform(), "ha": side}
    changes.text(kept_update, 1.02, f"handed on: update {kept_update}", fontsize=8, **above)
    kl.set_xlabel("update of PPO", fontsize=9)
    kl.xaxis.set_major_locator(MaxNLocator(integer=True))
    alt = (
        f"On {history[0].reward.size} withheld prompts, from the SFT model to update {updates[kept]} of PPO: "
        f"{'; '.join(found)}. The policy of update {kept_update} was handed on."
    )
    title = f"What changed while PPO trained, on {history[0].reward.size} withheld prompts"
    return Picture("training.png", title, alt, figure)


def _logged(method: str, records: curves.Records) -> Picture:
    """Draw two figures of the training batches, for a run that was not measured on withheld prompts."""
    figure, places = curves.panels(_WIDTH_IN, _HEIGHT_IN / 2, 2)
    panels = list(metrics.REPORT_PANELS[method].items())[:2]
    for axes, (panel, every) in zip(places, panels, strict=True):
        series = {label: key for label, key in every.items() if not key.startswith("eval/")}
        curves.curves(axes, panel, series, records)
    names = [panel.partition(",")[0].removesuffix(" to SFT") for panel, _ in panels]
    title = f"{' and '.join(names)} while {methods.LABELS[method]} trained"
    alt = f"{title}, of the training batches: no withheld prompts were measured."
    return Picture("training.png", title, alt, figure)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str]]) -> None:
    """Write a text beside the end of each line, with a distance where ends are close; ends: height and text."""
    low, high = axes.get_ylim()
    height = -np.inf
    for end, label in sorted(ends):
        height = max(end, height + 0.09 * (high - low))
        axes.text(1.02, height, label, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center")


def _accuracy(rewards: Mapping[str, Mapping[str, Any]]) -> Picture:
    shown: dict[str, Mapping[str, Any]] = {}
    for name, report in rewards.items():
        label = _REWARD_MODELS[name]
        shown[label] = {"accuracy": report["accuracy"], **report["baselines"]}
        if len(report["by_subset"]) > 1:
            shown |= {f"{label}: {subset}": one for subset, one in report["by_subset"].items()}
    rows = np.arange(len(shown))
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.4 + 0.38 * len(shown), 1)
    for place, (key, label) in enumerate((("accuracy", "accuracy"), ("longer_answer_wins", "the longer answer wins"))):
        estimates = [one[key] for one in shown.values()]
        _points(axes, place, label, estimates, rows + 0.24 * place - 0.12, linestyle="none")
    for key, label, line in (("chance", "chance", ":"), ("best_reachable", "best reachable", "--")):
        share = next(iter(rewards.values()))["baselines"][key]
        if share is not None:
            axes.axvline(share, color="0.35", linestyle=line, label=label)
    # a folder's name is no formula
    names = (printable(name).replace("$", "\\$") for name in shown)
    labels = [f"{name}\nn = {one['accuracy']['n']}" for name, one in zip(names, shown.values(), strict=True)]
    axes.set_yticks(rows, labels)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_PERCENT)
    _label(figure, f"{metrics.ACCURACY.label} on held-out pairs", "")
    alt = "; ".join(
        f"{_REWARD_MODELS[name]}: right on {text(report['accuracy'], 'share')} of {report['pairs']} held-out pairs, "
        f"where the longer answer wins {text(report['baselines']['longer_answer_wins'], 'share')}"
        for name, report in rewards.items()
    )
    return Picture("accuracy.png", "Reward model and judge beside their baselines", alt, figure)


def _calibration(rewards: Mapping[str, Mapping[str, Any]]) -> Picture:
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.15 * _HEIGHT_IN, 1)
    axes.plot([0.5, 1], [0.5, 1], color="0.35", linestyle=":", label="perfect calibration")
    for place, (name, report) in enumerate(rewards.items()):
        predicted, observed = ([one[key] for one in report["calibration"]["bins"]] for key in ("predicted", "observed"))
        _points(axes, place, f"{_REWARD_MODELS[name].lower()}, n = {report['pairs']}", predicted, observed)
    axes.xaxis.set_major_formatter(_PERCENT)
    axes.yaxis.set_major_formatter(_PERCENT)
    _label(figure, metrics.CONFIDENCE.label, metrics.OBSERVED.label)
    errors = (
        f"{_REWARD_MODELS[name].lower()} {text(report['calibration']['expected_error'], 'share')}"
        for name, report in rewards.items()
    )
    alt = f"Accuracy by the probability that the model gives the answer it prefers. Mean distance: {', '.join(errors)}."
    return Picture("calibration.png", "Calibration", alt, figure)


def _sft(records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, (axes,) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 1)
    curves.curves(axes, metrics.SFT_LOSS.axis, {"training": "loss"}, records, "step")
    _heldout(axes, [0, report["steps"]], [report["heldout_loss_before"], report["heldout_loss_after"]])
    before, after = (text(report[f"heldout_loss_{when}"]) for when in ("before", "after"))
    alt = f"Loss of SFT over its steps. On held-out answers: {before} before, {after} after."
    return Picture("curves-sft.png", "SFT", alt, figure)


def _reward_model(name: str, records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, places = curves.panels(_WIDTH_IN, _HEIGHT_IN, 2)
    for axes, metric in zip(places, (metrics.PAIR_LOSS, metrics.ACCURACY), strict=True):
        curves.curves(axes, metric.axis, {"training": metric.key}, records, "step")
    _heldout(places[1], [report["steps"]], [report["accuracy"]])
    title = _REWARD_MODELS[name]
    accuracy = text(report["accuracy"], "share")
    alt = f"Loss and accuracy of the {title.lower()} over its steps. On held-out pairs at its end: accuracy {accuracy}."
    return Picture(f"curves-{name}.png", title, alt, figure)


def _policy(method: str, records: curves.Records, history: Sequence[Measured]) -> Picture:
    label, panels = methods.LABELS[method], metrics.REPORT_PANELS[method]
    figure = curves.of_policy(records, history, panels, _WIDTH_IN, 0.9 * _HEIGHT_IN)
    shown = "Reward, KL to SFT, answer length, and shares of ended answers and distinct bigrams"
    alt = f"{shown if method == 'ppo' else ', '.join(panels)} over the updates of {label}."
    shown = {f"eval/{one.heldout_key}": one.axis for one in (metrics.REWARD, metrics.KL, metrics.TOKENS)}
    for one in (history[0], history[-1]) if history else ():
        found = summary(one)
        values = (f"{axis} {text(found[key])}" for key, axis in shown.items() if key in found)
        alt += f" On withheld prompts at update {one.update}: {', '.join(values)}."
    return Picture(f"curves-{method}.png", label, alt, figure)


def _heldout(axes: Axes, steps: Sequence[int], estimates: Sequence[Mapping[str, float]]) -> None:
    """Draw what was measured on held-out rows beside the curve of training."""
    _points(axes, 1, f"held-out, n = {estimates[0]['n']}", steps, estimates, linestyle="none", capsize=3)
    axes.legend(fontsize=8)


def _points(axes: Axes, place: int, label: str, x: Any, y: Any, **style: Any) -> None:
    """Draw points in the colour and marker of a place. x, y: numbers, or estimates, which get their intervals."""
    (x, x_reach), (y, y_reach) = (
        ([one["mean"] for one in values], curves.reach(values)) if isinstance(values[0], Mapping) else (values, None)
        for values in (x, y)
    )
    style |= {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.2, "elinewidth": 0.7}
    axes.errorbar(x, y, xerr=x_reach, yerr=y_reach, label=label, **style)


def _label(figure: Figure, x: str, y: str) -> None:
    """Label the only panel of a figure, with the legend above it, where it hides no point."""
    (axes,) = figure.axes
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    figure.legend(fontsize=8, ncols=2, loc="outside upper center")
