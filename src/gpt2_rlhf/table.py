"""Turn a run's summary into the table printed at its end: what ran, how good the reward model is, what changed.

Plain text in ASCII of at most 100 columns, the same on a terminal, in a log file and under LANG=C; the rows are
Markdown, so that they can be pasted into a page as they are.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100
_MODELS = ("base", "sft", "ppo")
_FIGURES = (  # key in the evaluation, label, whether it is a share
    ("reward", "Reward", False),
    ("utility", "Utility", False),
    ("win_rate_vs_base", "Wins against base", True),
    ("win_rate_vs_sft", "Wins against SFT", True),
    ("answer_tokens", "Length (tokens)", False),
    ("eos_rate", "Ended with EOS", True),
    ("distinct_2", "Distinct bigrams", True),
    ("kl_to_sft_nats", "KL to SFT (nats)", False),
)


def render(summary: Mapping[str, Any]) -> str:
    """The summary as text: stages, supervised loss, reward model beside its baselines, the three models compared.

    Figures read `mean [low, high]`, the ends of the 95 % interval; "-" stands for what is unknown or compares a model
    with itself.
    """
    text = io.StringIO()
    console = Console(
        file=text, width=WIDTH, force_terminal=False, color_system=None, highlight=False, markup=False, emoji=False
    )
    evaluation = summary["evaluation"]
    console.print(f"Run {summary['run']}, seed {summary['seed']}")
    console.print(_stages(summary["stages"]))
    sft = summary["sft"]
    before, after = sft["heldout_loss_before"], sft["heldout_loss_after"]
    console.print(
        f"Supervised fine-tuning: held-out loss in nats per token {_figure(before)} before, {_figure(after)} after "
        f"({after['n']} answers)."
    )
    console.print(_reward_model(summary["reward_model"]))
    for fault in summary["ppo"]["forced"]:
        console.print(f"Gone on by force=true where a gate would have stopped: {fault}")
    if summary["ppo"]["stopped"] is not None:
        kept = summary["ppo"]["kept_update"]
        console.print(f"The guard stopped PPO: {summary['ppo']['stopped']}. The policy of update {kept} was handed on.")
    console.print(_comparison(evaluation["models"]))
    console.print(_differences(evaluation["paired"]))
    if summary["seeds"] is not None:
        console.print(_seeds(summary["seeds"]))
        console.print(_failed_seeds(summary["seeds"]))
    console.print(
        f"Three models on the same {evaluation['prompts']} held-out prompts: n = {evaluation['prompts']} for each "
        f"figure; answers sampled with seed {evaluation['seed']}, temperature {evaluation['temperature']:g}, at most "
        f"{evaluation['max_new_tokens']} tokens. In brackets 95 % intervals: bootstrap over prompts, and Wilson's for "
        "the reward model's accuracy. Reward and wins are by the reward model's score, ties one half; utility is the "
        "data's own measure of quality, where it has one."
    )
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    # each table brings an empty line above and below: one is enough between two
    kept = [line for line, previous in zip(lines, ["", *lines], strict=False) if line or previous]
    return "\n".join(kept) + "\n"


def found(stage: str, metrics: Mapping[str, Any]) -> str:
    """What a training stage found, in one line."""
    if stage == "sft":
        before, after = metrics["heldout_loss_before"], metrics["heldout_loss_after"]
        return f"held-out loss {_figure(before)} before, {_figure(after)} after, nats per token"
    if stage in ("reward", "judge"):
        longer = metrics["baselines"]["longer_answer_wins"]
        return f"held-out accuracy {_share(metrics['accuracy'])}, the longer answer wins {_share(longer)}"
    text = f"{metrics['episodes']} episodes in {metrics['updates']} updates"
    if metrics["heldout"] is None:
        return text
    start, kept = metrics["heldout"]["start"], metrics["heldout"]["kept"]
    if kept is None:
        return text
    return f"{text}, held-out reward {_figure(start['reward'])} before, {_figure(kept['reward'])} after"


def _table(title: str, *others: str) -> Table:
    table = Table(box=box.MARKDOWN, pad_edge=True)
    table.add_column(title)
    for header in others:
        table.add_column(header, justify="right")
    return table


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("Stage", "Seconds", "of which work", "", "Directory")
    for name, stage in stages.items():
        table.add_row(
            name,
            f"{stage['wall_s']:.1f}",
            f"{stage['work_s']:.1f}",
            "re-used" if stage["reused"] else "ran",
            Path(stage["directory"]).name,
        )
    return table


def _reward_model(report: Mapping[str, Any]) -> Table:
    best = report["baselines"]["best_reachable"]
    table = _table("Reward model", "Pairs", "Accuracy", "Longer answer wins", "Chance", "Best reachable")
    table.add_row(
        "all",
        str(report["pairs"]),
        _share(report["accuracy"]),
        _share(report["baselines"]["longer_answer_wins"]),
        f"{100 * report['baselines']['chance']:.1f} %",
        "-" if best is None else f"{100 * best:.1f} %",
    )
    for name, subset in report["by_subset"].items():
        n = str(subset["accuracy"]["n"])
        table.add_row(name, n, _share(subset["accuracy"]), _share(subset["longer_answer_wins"]), "", "")
    return table


def _comparison(models: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("Mean per answer", "base", "SFT", "PPO")
    for key, label, is_share in _FIGURES:
        table.add_row(label, *_cells([models[name][key] for name in _MODELS], is_share))
    return table


def _differences(paired: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("Difference on the same prompts", "SFT - base", "PPO - SFT")
    for key, label, is_share in _FIGURES[:2]:
        table.add_row(label, *_cells([paired[name][key] for name in ("sft_minus_base", "ppo_minus_sft")], is_share))
    return table


def _seeds(seeds: Mapping[str, Any]) -> Table:
    numbers = ", ".join(str(one["seed"]) for one in seeds["by_seed"])
    table = _table(f"PPO with seeds {numbers}", "Mean", "SD", "Lowest", "Highest")
    for key, label, is_share in _FIGURES:
        over = seeds["over_seeds"].get(key)
        if over is not None:
            figures = [over[name] for name in ("mean", "sd", "min", "max")]
            texts = [f"{100 * one:.1f} %" if is_share else f"{one:.2f}" for one in figures if one is not None]
            table.add_row(label, *(texts if over["sd"] is not None else [texts[0], "-", *texts[1:]]))
    return table


def _failed_seeds(seeds: Mapping[str, Any]) -> str:
    lines = [f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} seeds collapsed."]
    for one in seeds["by_seed"]:
        if one["collapsed"] is not None:
            lines.append(f"Seed {one['seed']} collapsed: {one['collapsed']}.")
        if one["stopped"] is not None:
            lines.append(f"Seed {one['seed']}: the guard stopped PPO and kept update {one['kept_update']}.")
    return " ".join(lines)


def _cells(estimates: Sequence[Mapping[str, float] | None], is_share: bool) -> list[str]:
    return ["-" if one is None else _share(one) if is_share else _figure(one) for one in estimates]


def _figure(estimate: Mapping[str, float]) -> str:
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    # three columns of figures above 100 with two decimals would not fit the width
    decimals = 2 if max(abs(low), abs(high)) < 100 else 1
    return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def _share(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['mean']:.1f} % [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
