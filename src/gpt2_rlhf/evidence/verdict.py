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
    found = []
    if policy["stopped"] is not None:
        handed_on = f"policy of update {policy['kept_update']}" if policy["kept_update"] else "SFT model"
        found.append(f"The guard stopped PPO: {policy['stopped']}. The {handed_on} was handed on.")
    return found + [forced_text(fault) for fault in policy["forced"]]


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
    measure = usable_measures(summary)[0]
    found = _claim(evaluation, method, measure)
    longer, best = _longer(evaluation["models"], method), _best_of_n(evaluation, measure)
    answers = f"{label}'s answers"
    both = [f"{'They' if found[0].startswith(answers) else answers} are {longer}"] if longer else []
    if best:
        both.append(f"{'the' if both else 'The'} {best}")
    return [*found, *([f"{'; '.join(both)}."] if both else [])]


def _claim(evaluation: Mapping[str, Any], method: str, measure: Metric) -> list[str]:
    """Return the claim about the answers, and what the reward adds to it. measure: the first that is usable."""
    gain, models, n = evaluation["paired"][f"{method}_minus_sft"], evaluation["models"], evaluation["prompts"]
    label, difference = methods.LABELS[method], f"(difference {text(gain[measure.key], measure.unit)})"

    def direction(metric: Metric) -> str | None:
        return "rose" if gain[metric.key]["low"] > 0 else "fell" if gain[metric.key]["high"] < 0 else None

    def change(metric: Metric) -> str:
        before, after = (text(float(models[name][metric.key]["mean"]), metric.unit) for name in ("sft", method))
        return f"{_name(metric)} {direction(metric)} from {before} to {after}"

    moved, reward = direction(measure), direction(metrics.REWARD)
    if moved is None and reward is None:
        return [f"No difference between {label} and SFT shows on {n} prompts: {_name(measure)} {difference}."]
    if measure is metrics.REWARD:
        alone = "That alone does not show better answers: the run has neither a utility nor a usable judge."
        return [f"{label}'s {change(measure)} {difference}.", *([alone] if reward == "rose" else [])]
    if moved == "rose":
        better = f"{label}'s answers are better: {change(measure)} {difference}."
        return [better] if reward == "rose" else [better, "No rise of the reward shows."]
    of_reward = f"The {change(metrics.REWARD)}"
    if moved == "fell":
        worse = f"{label}'s answers are worse: {change(measure)} {difference}."
        return [worse, f"{of_reward}: {label} exploited the reward model."] if reward == "rose" else [worse]
    may_be = f": {label} may have exploited the reward model" if reward == "rose" else ""
    return [f"No change of {_name(measure)} shows on {n} prompts {difference}.", f"{of_reward}{may_be}."]


def _other_measures(summary: Mapping[str, Any]) -> list[str]:
    """Return the policy against SFT by each usable measure: win rates and differences."""
    method, evaluation, usable = methods.of(summary), summary["evaluation"], usable_measures(summary)
    gain, rates = evaluation["paired"][f"{method}_minus_sft"], evaluation["models"][method]
    label = methods.LABELS[method]
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
    return f"best of {evaluation['best_of']} SFT answers, without training, reaches {_name(measure)} {reached}"


def _longer(models: Mapping[str, Any], method: str) -> str | None:
    """Return how much longer or shorter the answers became; None where the intervals of the mean lengths overlap."""
    sft, policy = (models[name][metrics.TOKENS.key] for name in ("sft", method))
    if not sft["mean"] or (policy["low"] <= sft["high"] and policy["high"] >= sft["low"]):
        return None
    change = policy["mean"] / sft["mean"] - 1
    return f"{100 * abs(change):.0f} % {'longer' if change > 0 else 'shorter'}"


def _name(metric: Metric) -> str:
    return f"{'the ' if metric is metrics.JUDGE_REWARD else ''}{metric.label.lower()}"
