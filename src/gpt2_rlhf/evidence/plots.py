"""Turn a run's logs, samples and manifests into the pictures of its report, legible on a phone.

Every picture has one column of panels. A model has the same colour everywhere, and differs in marker or line as well,
for those who print or see without colours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import curves
from gpt2_rlhf.evidence.curves import COLOURS, MARKERS
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.store.files import replacing

Sample = Mapping[str, Any]  # a line of samples.jsonl
Figures = Mapping[str, float]  # an estimate: mean, low, high and n

_WIDTH_IN, _HEIGHT_IN, _DPI = 5.0, 3.1, 180  # 900 pixels wide: twice a phone's and a half-page column's
_MODELS = {"base": ("Base", "0.35", ":"), "sft": ("SFT", COLOURS[0], "--"), "ppo": ("PPO", COLOURS[1], "-")}
_REWARD_MODELS = {"reward": "Reward model", "judge": "Judge"}
_BINS = 30


@dataclass(frozen=True)
class Picture:
    """A drawn figure, the name of its file, its title, and a description for readers who cannot see it."""

    file: str
    title: str
    alt: str
    figure: Figure

    def save(self, directory: Path) -> bytes:
        """Write it as PNG, and return the bytes."""
        with replacing(directory / self.file, "wb") as file:
            self.figure.savefig(file, dpi=_DPI, format="png")
        return (directory / self.file).read_bytes()


def pictures(run_dir: Path, records: Mapping[str, Mapping[str, Any]], samples: Sequence[Sample]) -> list[Picture]:
    """Return all pictures of a run, in the order of the page. samples: the held-out ones."""
    history = curves.heldout(run_dir / "ppo")
    rewards = {name: records[name]["metrics"] for name in _REWARD_MODELS if name in records}
    return [
        _distributions(samples, "reward", metrics.REWARD),
        _distributions(samples, "tokens", metrics.TOKENS),
        *([_against_kl(history)] if history else []),
        _accuracy(rewards),
        _calibration(rewards),
        _sft(curves.logged(run_dir / "sft"), records["sft"]["metrics"]),
        *(_reward_model(name, curves.logged(run_dir / name), report) for name, report in rewards.items()),
        _ppo(curves.logged(run_dir / "ppo"), history),
    ]


def _distributions(samples: Sequence[Sample], key: str, metric: Metric) -> Picture:
    values = {name: np.array([one["answers"][name][key] for one in samples], dtype=float) for name in _MODELS}
    every = np.concatenate(list(values.values()))
    bins = np.histogram_bin_edges(every, bins=_BINS).tolist()
    if key == "tokens":  # bins of whole tokens: otherwise some would hold one length and others two
        width = max(1, round((every.max() - every.min()) / _BINS))
        bins = np.arange(every.min() - 0.5, every.max() + width + 0.5, width).tolist()
    figure, (axes,) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 1)
    for name, (model, colour, line) in _MODELS.items():
        axes.hist(values[name], bins=bins, histtype="step", color=colour, linestyle=line, linewidth=1.8, label=model)
        if name == "ppo":
            axes.hist(values[name], bins=bins, color=colour, alpha=0.15)
    _label(axes, metric.axis, f"prompts of {len(samples)}")
    axes.legend(fontsize=8)
    return Picture(
        f"{key}-distribution.png",
        f"{metric.label} before and after",
        f"Histograms of {metric.axis.lower()} over the {len(samples)} held-out prompts: base model, SFT and PPO. Means "
        "and intervals are in the table Mean per answer.",
        figure,
    )


def _against_kl(history: Sequence[Measured]) -> Picture:
    """Reward, judge and utility over the distance from SFT: PPO over-optimises where only the reward rises."""
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.25 * _HEIGHT_IN, 1)
    kl = [asdict(bootstrap_mean(one.kl_nats)) for one in history if one.kl_nats is not None]
    series = {
        metrics.REWARD: [one.rewards for one in history],
        metrics.JUDGE_REWARD: [one.judge_rewards for one in history],
        metrics.UTILITY: [one.utilities for one in history],
    }
    measured = {metric.label.lower(): values for metric, values in series.items() if values[0] is not None}
    for place, (label, values) in enumerate(measured.items()):
        points = [asdict(bootstrap_mean(one)) for one in values if one is not None]
        axes.errorbar(
            _means(kl),
            _means(points),
            xerr=_reach(kl),
            yerr=_reach(points),
            color=COLOURS[place],
            marker=MARKERS[place],
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=label,
        )
        for at, one in ((0, history[0]), (len(history) - 1, history[-1])):
            axes.annotate(f" {one.update}", (kl[at]["mean"], points[at]["mean"]), fontsize=8, va="bottom")
    _label(axes, f"{metrics.KL.axis} per answer", metrics.REWARD.unit)
    axes.legend(fontsize=8)
    return Picture(
        "reward-against-kl.png",
        "Reward against KL",
        f"Mean {', '.join(measured)} over the KL to the SFT model, at updates {history[0].update} to "
        f"{history[-1].update} of PPO, on {history[0].rewards.size} held-out prompts with 95 % intervals; numbers are "
        "updates. PPO over-optimises where the reward rises and the others fall.",
        figure,
    )


def _accuracy(rewards: Mapping[str, Mapping[str, Any]]) -> Picture:
    labels: list[str] = []
    right: list[Figures] = []  # by row, like `longer`, the accuracy of taking the longer answer
    longer: list[Figures] = []
    for name, report in rewards.items():
        label = _REWARD_MODELS[name]
        whole = {"accuracy": report["accuracy"], "longer_answer_wins": report["baselines"]["longer_answer_wins"]}
        subsets = report["by_subset"] if len(report["by_subset"]) > 1 else {}
        for part, one in {label: whole, **{f"{label}: {subset}": subsets[subset] for subset in subsets}}.items():
            plain = part.replace("$", r"\$")  # a folder's name is no formula
            labels.append(f"{plain}\nn = {one['accuracy']['n']}")
            right.append(one["accuracy"])
            longer.append(one["longer_answer_wins"])
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.4 + 0.38 * len(labels), 1)
    for place, (label, figures) in enumerate({"accuracy": right, "the longer answer wins": longer}.items()):
        axes.errorbar(
            _means(figures, 100),
            np.arange(len(labels)) + 0.24 * place - 0.12,
            xerr=_reach(figures, 100),
            fmt=MARKERS[place],
            color=COLOURS[place],
            markersize=5,
            label=label,
        )
    baselines = next(iter(rewards.values()))["baselines"]
    axes.axvline(100 * baselines["chance"], color="0.35", linestyle=":", label="chance")
    if baselines["best_reachable"] is not None:
        axes.axvline(100 * baselines["best_reachable"], color="0.35", linestyle="--", label="best reachable")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    _label(axes, f"{metrics.ACCURACY.label} on held-out pairs, %", "")
    figure.legend(fontsize=8, ncols=2, loc="outside upper center")
    return Picture(
        "accuracy.png",
        "Reward model and judge beside their baselines",
        "Accuracy on held-out pairs with 95 % intervals, overall and by subset, beside taking the longer answer and "
        "chance. The figures are in the table Held-out pairs.",
        figure,
    )


def _calibration(rewards: Mapping[str, Mapping[str, Any]]) -> Picture:
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.15 * _HEIGHT_IN, 1)
    axes.plot([50, 100], [50, 100], color="0.35", linestyle=":", label="perfect calibration")
    for place, (name, report) in enumerate(rewards.items()):
        bins = report["calibration"]["bins"]
        observed = [one["observed"] for one in bins]
        axes.errorbar(
            [100 * one["predicted"] for one in bins],
            _means(observed, 100),
            yerr=_reach(observed, 100),
            color=COLOURS[place],
            marker=MARKERS[place],
            markersize=4,
            linewidth=1.2,
            label=f"{_REWARD_MODELS[name].lower()}, n = {report['pairs']}",
        )
    _label(axes, f"{metrics.CONFIDENCE.label}, %", f"{metrics.OBSERVED.label}, %")
    axes.legend(fontsize=8)
    return Picture(
        "calibration.png",
        "Calibration",
        "Accuracy on held-out pairs over the probability that the model gives the answer it prefers, with Wilson "
        "intervals; a well calibrated model is on the dotted diagonal. The reward model's figures are in the table "
        "Confidence of the reward model.",
        figure,
    )


def _sft(records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, (axes,) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 1)
    curves.curves(axes, metrics.SFT_LOSS.axis, {"training": "loss"}, records, "step")
    heldout = [report["heldout_loss_before"], report["heldout_loss_after"]]
    _mark(axes, [0, report["steps"]], heldout, f"held-out, n = {heldout[0]['n']}")
    return Picture(
        "curves-sft.png", "SFT", "Loss of SFT over its steps, and on held-out answers before and after.", figure
    )


def _reward_model(name: str, records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, (loss, accuracy) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 2)
    curves.curves(loss, metrics.PAIR_LOSS.axis, {"training": "loss"}, records, "step")
    curves.curves(accuracy, metrics.ACCURACY.axis, {"training": "accuracy"}, records, "step")
    _mark(accuracy, [report["steps"]], [report["accuracy"]], f"held-out, n = {report['accuracy']['n']}")
    title = _REWARD_MODELS[name]
    alt = f"Loss and accuracy of the {title.lower()} over its steps, and the accuracy on held-out pairs at its end."
    return Picture(f"curves-{name}.png", title, alt, figure)


def _ppo(records: curves.Records, history: Sequence[Measured]) -> Picture:
    figure, places = curves.panels(_WIDTH_IN, 0.9 * _HEIGHT_IN, len(metrics.REPORT_PANELS))
    for title, axes in zip(metrics.REPORT_PANELS, places, strict=True):
        curves.curves(axes, title, metrics.panels()[title], curves.merged(records, history))
    return Picture(
        "curves-ppo.png",
        "PPO",
        "Reward, KL to SFT, answer length, and shares of ended answers and of distinct bigrams over the updates of "
        "PPO, in training and on held-out prompts; bands are 95 % intervals.",
        figure,
    )


def _mark(axes: Axes, steps: Sequence[int], figures: Sequence[Figures], label: str) -> None:
    """Draw points with their intervals beside the curve."""
    axes.errorbar(
        steps, _means(figures), yerr=_reach(figures), fmt="s", color=COLOURS[1], markersize=5, capsize=3, label=label
    )
    axes.legend(fontsize=8)


def _means(figures: Sequence[Figures], scale: float = 1) -> np.ndarray:
    return scale * np.array([one["mean"] for one in figures])


def _reach(figures: Sequence[Figures], scale: float = 1) -> np.ndarray:
    """How far the intervals go below and above their means, shape (2, figures)."""
    reach = np.array([[one["mean"] - one["low"], one["high"] - one["mean"]] for one in figures]).T
    return scale * np.maximum(reach, 0)  # at a share of 1 Wilson's upper end may round to just below it


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)
