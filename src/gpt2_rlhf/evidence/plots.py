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
from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.evidence import curves
from gpt2_rlhf.evidence.curves import COLOURS, MARKERS
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.store.files import replacing

Sample = Mapping[str, Any]  # a line of samples.jsonl
Estimates = Sequence[Mapping[str, float]]  # mean, low, high and n each

_WIDTH_IN, _HEIGHT_IN, _DPI = 5.0, 3.1, 180  # 900 pixels wide: twice a phone's and a half-page column's
_MODELS = {"base": ("Base", "0.35", ":"), "sft": ("SFT", COLOURS[0], "--"), "ppo": ("PPO", COLOURS[1], "-")}
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
    axes.hist(values["ppo"], bins=bins, color=_MODELS["ppo"][1], alpha=0.15)
    alt = (
        f"Histograms of {metric.axis.lower()} over the {len(samples)} held-out prompts: base model, SFT and PPO. Means "
        "and intervals are in the table Mean per answer."
    )
    _label(figure, metric.axis, f"prompts of {len(samples)}")
    return Picture(f"{key}-distribution.png", f"{metric.label} before and after", alt, figure)


def _against_kl(history: Sequence[Measured]) -> Picture:
    """Reward, judge and utility over the distance from SFT: PPO over-optimises where only the reward rises."""
    series = {
        metrics.KL: [one.kl_nats for one in history],
        metrics.REWARD: [one.rewards for one in history],
        metrics.JUDGE_REWARD: [one.judge_rewards for one in history],
        metrics.UTILITY: [one.utilities for one in history],
    }
    kl, *measured = (
        (metric.label.lower(), [asdict(bootstrap_mean(one)) for one in values if one is not None])
        for metric, values in series.items()
        if values[0] is not None
    )
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.25 * _HEIGHT_IN, 1)
    for place, (label, values) in enumerate(measured):
        _points(axes, place, label, kl[1], values)
        for at in (0, -1):
            axes.annotate(f" {history[at].update}", (kl[1][at]["mean"], values[at]["mean"]), fontsize=8, va="bottom")
    alt = (
        f"Mean {', '.join(label for label, _ in measured)} over the KL to the SFT model, at updates "
        f"{history[0].update} to {history[-1].update} of PPO, on {history[0].rewards.size} held-out prompts with 95 % "
        "intervals; numbers are updates. PPO over-optimises where the reward rises and the others fall."
    )
    _label(figure, f"{metrics.KL.axis} per answer", metrics.REWARD.unit)
    return Picture("reward-against-kl.png", "Reward against KL", alt, figure)


def _accuracy(rewards: Mapping[str, Mapping[str, Any]]) -> Picture:
    shown: dict[str, Mapping[str, Any]] = {}
    for name, report in rewards.items():
        label = _REWARD_MODELS[name]
        shown[label] = {"accuracy": report["accuracy"], **report["baselines"]}
        if len(report["by_subset"]) > 1:
            shown |= {f"{label}: {subset}": one for subset, one in report["by_subset"].items()}
    rows = np.arange(len(shown))
    figure, (axes,) = curves.panels(_WIDTH_IN, 1.4 + 0.38 * len(shown), 1)
    for place, (key, label) in enumerate(
        {"accuracy": "accuracy", "longer_answer_wins": "the longer answer wins"}.items()
    ):
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
    alt = (
        "Accuracy on held-out pairs with 95 % intervals, overall and by subset, beside taking the longer answer and "
        "chance. The figures are in the table Held-out pairs."
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
    alt = (
        "Accuracy on held-out pairs over the probability that the model gives the answer it prefers, with Wilson "
        "intervals; a well calibrated model is on the dotted diagonal. The reward model's figures are in the table "
        "Confidence of the reward model."
    )
    return Picture("calibration.png", "Calibration", alt, figure)


def _sft(records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, (axes,) = curves.panels(_WIDTH_IN, _HEIGHT_IN, 1)
    curves.curves(axes, metrics.SFT_LOSS.axis, {"training": "loss"}, records, "step")
    _heldout(axes, [0, report["steps"]], [report["heldout_loss_before"], report["heldout_loss_after"]])
    alt = "Loss of SFT over its steps, and on held-out answers before and after."
    return Picture("curves-sft.png", "SFT", alt, figure)


def _reward_model(name: str, records: curves.Records, report: Mapping[str, Any]) -> Picture:
    figure, places = curves.panels(_WIDTH_IN, _HEIGHT_IN, 2)
    for axes, metric in zip(places, (metrics.PAIR_LOSS, metrics.ACCURACY), strict=True):
        curves.curves(axes, metric.axis, {"training": metric.key}, records, "step")
    _heldout(places[1], [report["steps"]], [report["accuracy"]])
    title = _REWARD_MODELS[name]
    alt = f"Loss and accuracy of the {title.lower()} over its steps, and the accuracy on held-out pairs at its end."
    return Picture(f"curves-{name}.png", title, alt, figure)


def _ppo(records: curves.Records, history: Sequence[Measured]) -> Picture:
    figure = curves.of_ppo(curves.merged(records, history), metrics.REPORT_PANELS, _WIDTH_IN, 0.9 * _HEIGHT_IN)
    alt = (
        "Reward, KL to SFT, answer length, and shares of ended answers and of distinct bigrams over the updates of "
        "PPO, in training and on held-out prompts; bands are 95 % intervals."
    )
    return Picture("curves-ppo.png", "PPO", alt, figure)


def _heldout(axes: Axes, steps: Sequence[int], estimates: Estimates) -> None:
    """Draw what was measured on held-out rows beside the curve of training."""
    _points(axes, 1, f"held-out, n = {estimates[0]['n']}", steps, estimates, linestyle="none", capsize=3)
    axes.legend(fontsize=8)


def _points(axes: Axes, place: int, label: str, x: Any, y: Any, **style: Any) -> None:
    """Draw points in the colour and marker of a place. x, y: numbers, or estimates, which get their intervals."""
    (x, x_reach), (y, y_reach) = (
        ([one["mean"] for one in values], curves.reach(values)) if isinstance(values[0], Mapping) else (values, None)
        for values in (x, y)
    )
    look: dict[str, Any] = {
        "color": COLOURS[place],
        "marker": MARKERS[place],
        "markersize": 4,
        "linewidth": 1.2,
        "elinewidth": 0.7,
    }
    axes.errorbar(x, y, xerr=x_reach, yerr=y_reach, label=label, **look, **style)


def _label(figure: Figure, x: str, y: str) -> None:
    """Label the only panel of a figure, with the legend above it, where it hides no point."""
    (axes,) = figure.axes
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=2, loc="outside upper center")
