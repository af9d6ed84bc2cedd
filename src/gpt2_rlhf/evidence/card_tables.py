"""Turn the metrics of manifests into the Markdown tables of the model cards.

A figure is written in one way only, `mean [low, high]` (terminal.py), and beside it stands how many values it is over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2_rlhf.evidence import terminal
from gpt2_rlhf.evidence.comparison import BEST_OF_N

Estimate = Mapping[str, float]  # mean, low, high, n

_PAIRS = ("sft_minus_base", "ppo_minus_sft", "ppo_minus_base", f"ppo_minus_{BEST_OF_N}")
_OUTCOMES = (  # key in a pair of the evaluation, what a row is called
    ("by_reward", "by the reward model"),
    ("by_judge", "by the judge"),
    ("length_matched", "by the reward model, answers of like length"),
)
_VERBS = {"win": "Higher", "tie": "Equal", "loss": "Lower"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; names out of the data may hold what would break its rows."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def models(evaluation: Mapping[str, Any], names: Sequence[str]) -> str:
    """Means of some of the models side by side, all on the same prompts; "-" where unknown or against itself."""
    measured = evaluation["models"]
    rows = []
    for key, label, is_share in terminal.FIGURES:
        estimates = [measured[name].get(key) for name in names]
        if any(one is not None for one in estimates):
            cells = [_text(one, is_share) for one in estimates]
            if key == "kl_to_sft_nats":
                cells = [_kl(measured[name], cell) for name, cell in zip(names, cells, strict=True)]
            rows.append([label, *cells, _n(estimates)])
    return markdown(["Mean per answer", *(title(name, evaluation) for name in names), "n"], rows)


def differences(evaluation: Mapping[str, Any]) -> str:
    """What changed on the same prompts: differences, and the shares of prompts where the score rose and fell."""
    names = [name for name in _PAIRS if name in evaluation["paired"]]
    pairs = [evaluation["paired"][name] for name in names]
    rows = []
    for key, label in terminal.DIFFERENCES:
        estimates = [pair[key] for pair in pairs]
        if any(one is not None for one in estimates):
            rows.append([label, *(_text(one, is_share=False) for one in estimates), _n(estimates)])
    for key, by in _OUTCOMES:
        for outcome, verb in _VERBS.items():
            estimates = [None if pair[key] is None else pair[key][outcome] for pair in pairs]
            if any(one is not None for one in estimates):
                rows.append([f"{verb} {by}", *(_text(one, is_share=True) for one in estimates), _n(estimates)])
    titles = [" - ".join(title(side, evaluation) for side in name.split("_minus_")) for name in names]
    return markdown(["On the same prompts", *titles, "n"], rows)


def subsets(evaluation: Mapping[str, Any]) -> str:
    """SFT and PPO by subset of the data, and by prompts of one turn and of several."""
    rows = []
    for name, subset in evaluation["by_subset"].items():
        sft, ppo, gain = subset["models"]["sft"], subset["models"]["ppo"], subset["ppo_minus_sft"]
        estimates = [sft["reward"], ppo["reward"], gain["reward"], gain["judge_reward"]]
        rows.append([name, *(_text(one, is_share=False) for one in estimates), str(subset["prompts"])])
    header = ["Prompts", "Reward of SFT", "Reward of PPO", "PPO - SFT", "PPO - SFT, judge's reward", "n"]
    return markdown(header, rows)


def losses(report: Mapping[str, Any]) -> str:
    """The SFT model's held-out loss before and after. report: its stage's metrics."""
    before, after = report["heldout_loss_before"], report["heldout_loss_after"]
    row = ["Loss (nats per token)", terminal.figure(before), terminal.figure(after), _n([before, after])]
    return markdown(["Held-out answers", "Before", "After", "n"], [row])


def reward_models(report: Mapping[str, Any], judge: Mapping[str, Any] | None) -> str:
    """Held-out accuracy beside what it has to beat: of the reward model, in all and by subset, and of the judge."""
    rows = [_accuracy("Reward model", report)]
    for name, subset in report["by_subset"].items():
        cells = [terminal.share(subset["accuracy"]), terminal.share(subset["longer_answer_wins"]), "", ""]
        rows.append([f"Reward model on {name}", *cells, _n([subset["accuracy"]])])
    if judge is not None:
        rows.append(_accuracy("Judge", judge))
    return markdown(["Held-out pairs", "Accuracy", "Longer answer wins", "Chance", "Best reachable", "n"], rows)


def calibration(report: Mapping[str, Any]) -> str:
    """How often the reward model is right, by how sure it is."""
    rows = [
        [
            f"{100 * one['from']:.0f} to {100 * one['to']:.0f} %",
            f"{100 * one['predicted']:.1f} %",
            terminal.share(one["observed"]),
            _n([one["observed"]]),
        ]
        for one in report["calibration"]["bins"]
    ]
    return markdown(["Claimed", "Claimed, mean", "Right", "n"], rows)


def seeds(spread: Mapping[str, Any]) -> str:
    """The policies that differ in PPO's seed alone: mean, standard deviation and range of their means."""
    rows = []
    for key, label, is_share in terminal.FIGURES:
        over = spread["over_seeds"].get(key)
        if over is not None:
            figures = [over[name] for name in ("mean", "sd", "min", "max")]
            texts = ["-" if one is None else f"{100 * one:.1f} %" if is_share else f"{one:.2f}" for one in figures]
            rows.append([label, *texts, str(over["n"])])
    return markdown(["Over seeds", "Mean", "SD", "Lowest", "Highest", "n"], rows)


def title(name: str, evaluation: Mapping[str, Any]) -> str:
    """What a model of the evaluation is called in a header."""
    return {"base": "base", "sft": "SFT", "ppo": "PPO", BEST_OF_N: f"best of {evaluation['best_of']} SFT"}[name]


def _accuracy(name: str, report: Mapping[str, Any]) -> list[str]:
    baselines = report["baselines"]
    best = baselines["best_reachable"]
    return [
        name,
        terminal.share(report["accuracy"]),
        terminal.share(baselines["longer_answer_wins"]),
        f"{100 * baselines['chance']:.1f} %",
        "-" if best is None else f"{100 * best:.1f} %",
        _n([report["accuracy"]]),
    ]


def _kl(model: Mapping[str, Any], measured: str) -> str:
    """Best of n has no log-probabilities of its own, and a bound that is computed."""
    return f"at most {model['kl_bound_nats']:.2f}" if "kl_bound_nats" in model else measured


def _text(estimate: Estimate | None, is_share: bool) -> str:
    return "-" if estimate is None else terminal.share(estimate) if is_share else terminal.figure(estimate)


def _n(estimates: Sequence[Estimate | None]) -> str:
    """How many values each estimate of a row is over; one number where they agree."""
    counts = ["-" if one is None else f"{one['n']}" for one in estimates]
    return ", ".join(counts) if len(set(counts) - {"-"}) > 1 else next(n for n in counts if n != "-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
