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
FIGURES = (  # key in the evaluation, label, whether it is a share
    ("reward", "Reward", False),
    ("judge_reward", "Judge's reward", False),
    ("utility", "Utility", False),
    ("win_rate_vs_base", "Wins against base", True),
    ("win_rate_vs_sft", "Wins against SFT", True),
    ("answer_tokens", "Length (tokens)", False),
    ("eos_rate", "Ended with EOS", True),
    ("distinct_2", "Distinct bigrams", True),
    ("kl_to_sft_nats", "KL to SFT (nats)", False),
    ("chosen_perplexity", "Perplexity", False),
)
DIFFERENCES = (  # key in a pair of the evaluation, label
    ("reward", "Reward"),
    ("reward_sd", "Reward in SD"),
    ("judge_reward", "Judge's reward"),
    ("utility", "Utility"),
)
_OUTCOMES = (  # key and outcome in a pair of the evaluation, label
    ("by_reward", "win", "Reward rose"),
    ("by_reward", "loss", "Reward fell"),
    ("by_judge", "win", "Judge's rose"),
    ("by_judge", "loss", "Judge's fell"),
    ("length_matched", "win", "Rose, like length"),
    ("length_matched", "loss", "Fell, like length"),
)


def render(summary: Mapping[str, Any]) -> str:
    """The summary as text: stages, supervised loss, reward model beside its baselines, the models compared.

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
        f"Supervised fine-tuning: held-out loss in nats per token {figure(before)} before, {figure(after)} after "
        f"({after['n']} answers)."
    )
    console.print(_reward_model(summary["reward_model"], summary["judge"]))
    console.print(trust(summary["reward_model"]))
    for fault in summary["ppo"]["forced"]:
        console.print(f"Gone on by force=true where a gate would have stopped: {fault}")
    if summary["ppo"]["stopped"] is not None:
        kept = summary["ppo"]["kept_update"]
        console.print(f"The guard stopped PPO: {summary['ppo']['stopped']}. The policy of update {kept} was handed on.")
    console.print(_comparison(evaluation["models"]))
    console.print(_differences(evaluation["paired"]))
    if "best_of_n" in evaluation["models"]:
        console.print(_yardstick(evaluation))
    console.print(_by_subset(evaluation["by_subset"]))
    if summary["seeds"] is not None:
        console.print(_seeds(summary["seeds"]))
        console.print(failed_seeds(summary["seeds"]))
    console.print(
        f"All models on the same {evaluation['prompts']} held-out prompts: n = {evaluation['prompts']} for each "
        f"figure without another; answers sampled with seed {evaluation['seed']}, temperature "
        f"{evaluation['temperature']:g}, at most {evaluation['max_new_tokens']} tokens. In brackets 95 % intervals: "
        "bootstrap over prompts; Wilson's for accuracies and shares of all or none. Reward and wins are by the reward "
        "model's score, ties one half; SD is that score's standard deviation over held-out answers; the judge is a "
        "reward model that PPO is not trained on; utility is the data's own measure of quality, where it has one. Rose "
        "and fell are shares of prompts, of like length those whose two answers differ by at most 2 tokens or 10 %. "
        "Perplexity is of the data's chosen answers."
    )
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    # each table brings an empty line above and below: one is enough between two
    kept = [line for line, previous in zip(lines, ["", *lines], strict=False) if line or previous]
    return "\n".join(kept) + "\n"


def found(stage: str, metrics: Mapping[str, Any]) -> str:
    """What a training stage found, in one line."""
    if stage == "sft":
        before, after = metrics["heldout_loss_before"], metrics["heldout_loss_after"]
        return f"held-out loss {figure(before)} before, {figure(after)} after, nats per token"
    if stage in ("reward", "judge"):
        longer = metrics["baselines"]["longer_answer_wins"]
        return f"held-out accuracy {share(metrics['accuracy'])}, the longer answer wins {share(longer)}"
    text = f"{metrics['episodes']} episodes in {metrics['updates']} updates"
    if metrics["heldout"] is None:
        return text
    start, kept = metrics["heldout"]["start"], metrics["heldout"]["kept"]
    if kept is None:
        return text
    return f"{text}, held-out reward {figure(start['reward'])} before, {figure(kept['reward'])} after"


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


def _reward_model(report: Mapping[str, Any], judge: Mapping[str, Any] | None) -> Table:
    table = _table("Reward model", "Pairs", "Accuracy", "Longer answer wins", "Chance", "Best reachable")
    for name, one in (("all", report), ("judge", judge)):
        if one is not None:
            best = one["baselines"]["best_reachable"]
            table.add_row(
                name,
                str(one["pairs"]),
                share(one["accuracy"]),
                share(one["baselines"]["longer_answer_wins"]),
                f"{100 * one['baselines']['chance']:.1f} %",
                "-" if best is None else f"{100 * best:.1f} %",
            )
    for name, subset in report["by_subset"].items():
        n = str(subset["accuracy"]["n"])
        table.add_row(name, n, share(subset["accuracy"]), share(subset["longer_answer_wins"]), "", "")
    return table


def trust(report: Mapping[str, Any]) -> str:
    """One paragraph: does the reward model know how sure it may be, and does it go by length?"""
    bias = report["length_bias"]
    correlation = "-" if bias["correlation"] is None else figure(bias["correlation"])
    longer, shorter = (
        "-" if one is None else f"{share(one)} of {one['n']}"
        for one in (bias["accuracy_chosen_longer"], bias["accuracy_chosen_shorter"])
    )
    off_by = share(report["calibration"]["expected_error"])
    return (
        f"Its confidence is off by {off_by} on average ({report['pairs']} pairs). Its score goes with length by a "
        f"correlation of {correlation}: right on {longer} pairs where the chosen answer is longer, on {shorter} where "
        "it is shorter."
    )


def _comparison(models: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("Mean per answer", "base", "SFT", "PPO")
    for key, label, is_share in FIGURES:
        table.add_row(label, *_cells([models[name][key] for name in _MODELS], is_share))
    return table


def _differences(paired: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("On the same prompts", "SFT - base", "PPO - SFT", "PPO - base")
    pairs = [paired[name] for name in ("sft_minus_base", "ppo_minus_sft", "ppo_minus_base")]
    for key, label in DIFFERENCES:
        table.add_row(label, *_cells([pair[key] for pair in pairs], is_share=False))
    for key, outcome, label in _OUTCOMES:
        table.add_row(label, *_cells([_outcome(pair, key, outcome) for pair in pairs], is_share=True))
    matched = [pair["length_matched"] for pair in pairs]
    table.add_row("Pairs, like length", *("0" if one is None else str(one["pairs"]) for one in matched))
    return table


def _seeds(seeds: Mapping[str, Any]) -> Table:
    numbers = ", ".join(str(one["seed"]) for one in seeds["by_seed"])
    table = _table(f"PPO with seeds {numbers}", "Mean", "SD", "Lowest", "Highest")
    for key, label, is_share in FIGURES:
        over = seeds["over_seeds"].get(key)
        if over is not None:
            figures = [over[name] for name in ("mean", "sd", "min", "max")]
            texts = [f"{100 * one:.1f} %" if is_share else f"{one:.2f}" for one in figures if one is not None]
            table.add_row(label, *(texts if over["sd"] is not None else [texts[0], "-", *texts[1:]]))
    return table


def failed_seeds(seeds: Mapping[str, Any]) -> str:
    """How many seeds collapsed, and each one that did or that the guard stopped."""
    lines = [f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} seeds collapsed."]
    for one in seeds["by_seed"]:
        if one["collapsed"] is not None:
            lines.append(f"Seed {one['seed']} collapsed: {one['collapsed']}.")
        if one["stopped"] is not None:
            lines.append(f"Seed {one['seed']}: the guard stopped PPO and kept update {one['kept_update']}.")
    return " ".join(lines)


def _yardstick(evaluation: Mapping[str, Any]) -> Table:
    """The best of n SFT answers by the reward model, which took no training, and PPO against it."""
    best, pair = evaluation["models"]["best_of_n"], evaluation["paired"]["ppo_minus_best_of_n"]
    title = f"best of {evaluation['best_of']}"
    table = _table("Yardstick", f"{title} of SFT", f"PPO - {title}")
    for key, label in (d for d in DIFFERENCES if d[0] in best):
        table.add_row(label, *_cells([best[key], pair[key]], is_share=False))
    table.add_row("Length (tokens)", figure(best["answer_tokens"]), "")
    table.add_row("KL to SFT (nats)", f"at most {best['kl_bound_nats']:.2f}", "")
    for key, outcome, label in (o for o in _OUTCOMES if o[0] != "length_matched"):
        table.add_row(label, "", *_cells([_outcome(pair, key, outcome)], is_share=True))
    return table


def _by_subset(subsets: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("PPO - SFT", "Prompts", "Reward", "Judge's reward")
    for name, subset in subsets.items():
        pair = subset["ppo_minus_sft"]
        table.add_row(name, str(subset["prompts"]), *_cells([pair["reward"], pair["judge_reward"]], is_share=False))
    return table


def _outcome(pair: Mapping[str, Any], key: str, outcome: str) -> Mapping[str, float] | None:
    return None if pair[key] is None else pair[key][outcome]


def _cells(estimates: Sequence[Mapping[str, float] | None], is_share: bool) -> list[str]:
    return ["-" if one is None else estimate_text(one, is_share) for one in estimates]


def estimate_text(estimate: Mapping[str, float], is_share: bool) -> str:
    """An estimate as every table has it: `mean [low, high]`, a share in percent."""
    return share(estimate) if is_share else figure(estimate)


def figure(estimate: Mapping[str, float]) -> str:
    """An estimate as `mean [low, high]`."""
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    # three columns of larger figures with as many decimals would not fit the width
    largest = max(abs(low), abs(high))
    decimals = 2 if largest < 100 else 1 if largest < 1000 else 0
    return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def share(estimate: Mapping[str, float]) -> str:
    """An estimate of a share as `mean % [low, high]`, all in percent."""
    return f"{100 * estimate['mean']:.1f} % [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
