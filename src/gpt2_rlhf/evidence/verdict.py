"""Turn a run's figures into a verdict of two sentences, and into notes, that claim no more than the intervals show.

A higher reward alone shows no better answers: PPO is trained on the reward model and comes to exploit its errors (Gao
et al. 2023, arXiv:2210.10760). "Better" needs a measure that PPO was not trained on, the data's utility or else the
judge, and a difference whose 95 % interval leaves out zero.
"""

from collections.abc import Mapping
from typing import Any

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence.comparison import BEST_OF_N, usable_measures
from gpt2_rlhf.evidence.tables import text


def verdict(summary: Mapping[str, Any]) -> str:
    """Return what training did to the answers in at most two sentences; "(difference ...)" is from SFT by prompt."""
    return " ".join(_findings(summary)[:2])


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader needs beside the verdict, a sentence or two each: other measures, what was handed on, seeds.

    A guard that stopped PPO and a gate that was passed by force come first, since they are faults.
    """
    policy, seeds = summary[methods.of(summary)], summary["seeds"]
    found = faults(policy) + _findings(summary)[2:] + _other_measures(summary)
    if policy["stopped"] is None and 0 != policy["kept_update"] != policy["updates"]:
        found.append(f"The policy of update {policy['kept_update']} of {policy['updates']} was handed on.")
    if (chosen := chosen_text(policy)) is not None:
        found.append(chosen)
    one = f"One training seed ({summary['seed']}) was run; another may end differently."
    return [*found, one if seeds is None else failed_seeds(seeds)]


def faults(policy: Mapping[str, Any]) -> list[str]:
    """Return a sentence each on a guard that stopped the training and on gates passed by force. policy: its metrics."""
    stopped = [] if policy["stopped"] is None else [stopped_text(policy)]
    return stopped + [forced_text(fault) for fault in policy["forced"]]


def stopped_text(ppo: Mapping[str, Any]) -> str:
    """Return why the guard stopped PPO and what was handed on. ppo: metrics of a PPO stage that was stopped."""
    handed_on = f"policy of update {ppo['kept_update']}" if ppo["kept_update"] else "SFT model"
    return f"The guard stopped PPO: {ppo['stopped']}. The {handed_on} was handed on."


def failed_seeds(seeds: Mapping[str, Any]) -> str:
    """Return how many seeds collapsed, and each one that did or that the guard stopped."""
    lines = [f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} seeds collapsed."]
    for one in seeds["by_seed"]:
        if one["collapsed"] is not None:
            lines.append(f"Seed {one['seed']} collapsed: {one['collapsed']}.")
        if one["stopped"] is not None:
            lines.append(f"Seed {one['seed']}: the guard stopped PPO and kept update {one['kept_update']}.")
    return " ".join(lines)


def forced_text(fault: str) -> str:
    """Return the sentence on a gate that force=true passed. fault: `stage: what was found; what to do`."""
    found = fault.partition(": ")[2].partition("; ")[0]
    return f"A gate failed, and force=true continued the run: {found.rstrip('.')}."


def chosen_text(ppo: Mapping[str, Any]) -> str | None:
    """Return the sentence on what chose the policy of a PPO stage; None where nothing chose. ppo: its metrics."""
    by = ppo.get("chosen_by")  # manifests of earlier versions have no such key
    name = "reward model" if by == "reward" else by
    return by and f"The {name} also chose the policy that was handed on, so its figures for PPO are optimistic."


def _findings(summary: Mapping[str, Any]) -> list[str]:
    """Return the claim, then what qualifies it, most important first, a sentence each."""
    method, evaluation = methods.of(summary), summary["evaluation"]
    label = methods.LABELS[method]
    if summary[method]["kept_update"] == 0:
        return [f"{label} handed on the SFT model unchanged."]
    first, second = _claim(evaluation, method, _quality(summary))
    longer = _longer(evaluation["models"], method)
    best = _best_of_n(evaluation, _quality(summary) or metrics.REWARD)
    answers = f"{label}'s answers"
    both = [f"{'They' if first.startswith(answers) else answers} are {longer}"] if longer else []
    if best:
        both.append(f"the {best.removeprefix('The ')}" if both else best)
    rest = [f"{'; '.join(both)}."] if both else []
    return [first, *([second] if second else []), *rest]


def _claim(evaluation: Mapping[str, Any], method: str, quality: Metric | None) -> tuple[str, str | None]:
    """Return the claim about the answers, and what the reward adds to it."""
    gain, models, n = evaluation["paired"][f"{method}_minus_sft"], evaluation["models"], evaluation["prompts"]
    label = methods.LABELS[method]

    def direction(metric: Metric) -> str | None:
        return "rose" if gain[metric.key]["low"] > 0 else "fell" if gain[metric.key]["high"] < 0 else None

    def change(metric: Metric) -> str:
        before, after = (text(float(models[name][metric.key]["mean"]), metric.unit) for name in ("sft", method))
        return f"{_name(metric)} {direction(metric)} from {before} to {after}"

    def difference(metric: Metric) -> str:
        return f"(difference {text(gain[metric.key], metric.unit)})"

    reward = direction(metrics.REWARD)
    if quality is None:
        if reward is None:
            return (
                f"No difference between {label} and SFT shows on {n} prompts: reward {difference(metrics.REWARD)}.",
                None,
            )
        claim = f"{label}'s {change(metrics.REWARD)} {difference(metrics.REWARD)}."
        alone = "That alone does not show better answers: the run has neither a utility nor a usable judge."
        return claim, alone if reward == "rose" else None
    reward_rose = f"The reward rose from {change(metrics.REWARD).partition(' from ')[2]}: {label}"
    if direction(quality) == "rose":
        better = f"{label}'s answers are better: {change(quality)} {difference(quality)}."
        return better, None if reward == "rose" else "No rise of the reward shows."
    if direction(quality) == "fell":
        worse = f"{label}'s answers are worse: {change(quality)} {difference(quality)}."
        return worse, f"{reward_rose} exploited the reward model." if reward == "rose" else None
    if reward is None:
        return (
            f"No difference between {label} and SFT shows on {n} prompts: {_name(quality)} {difference(quality)}.",
            None,
        )
    claim = f"No change of {_name(quality)} shows on {n} prompts {difference(quality)}."
    return claim, f"{reward_rose} may have exploited the reward model." if reward == "rose" else (
        f"The {change(metrics.REWARD)}."
    )


def _quality(summary: Mapping[str, Any]) -> Metric | None:
    """Return the measure of quality, which the policy was not trained on; None without one."""
    return first if (first := usable_measures(summary)[0]) is not metrics.REWARD else None


def _other_measures(summary: Mapping[str, Any]) -> list[str]:
    """Return the policy against SFT by each usable measure: win rates and differences."""
    evaluation, usable = summary["evaluation"], usable_measures(summary)
    method = methods.of(summary)
    gain, rates, label = (
        evaluation["paired"][f"{method}_minus_sft"],
        evaluation["models"][method],
        methods.LABELS[method],
    )
    wins = ", ".join(
        f"{text(rates[won.key], won.unit)} by {won.label.rpartition(' ')[2]}"
        for measure, won in zip(metrics.MEASURES, metrics.WINS_VS_SFT, strict=True)
        if measure in usable and rates.get(won.key) is not None
    )
    differences = ", ".join(f"{_name(one)} {text(gain[one.key], one.unit)}" for one in usable)
    return [
        *([f"{label} wins against SFT: {wins}."] if wins else []),
        f"{label} - SFT on the same {evaluation['prompts']} held-out prompts: {differences}.",
    ]


def _best_of_n(evaluation: Mapping[str, Any], measure: Metric) -> str | None:
    """Return what the best of several SFT answers reaches by this measure, the alternative to training."""
    best = evaluation["models"].get(BEST_OF_N)
    if best is None or best.get(measure.key) is None:
        return None
    reached = text(float(best[measure.key]["mean"]), measure.unit)
    return f"The best of {evaluation['best_of']} SFT answers, without training, reaches {_name(measure)} {reached}"


def _longer(models: Mapping[str, Any], method: str) -> str | None:
    """Return how much longer or shorter the answers became; None where the intervals of the mean lengths overlap."""
    sft, policy = (models[name][metrics.TOKENS.key] for name in ("sft", method))
    if not sft["mean"] or (policy["low"] <= sft["high"] and policy["high"] >= sft["low"]):
        return None
    change = policy["mean"] / sft["mean"] - 1
    return f"{100 * abs(change):.0f} % {'longer' if change > 0 else 'shorter'}"


def _name(metric: Metric) -> str:
    return f"{'the ' if metric is metrics.JUDGE_REWARD else ''}{metric.label.lower()}"
