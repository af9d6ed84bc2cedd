"""Turn a run's figures into one sentence that claims no more than its intervals show.

A higher reward alone shows no better answers: PPO is trained on the reward model and comes to exploit its errors (Gao
et al. 2023, arXiv:2210.10760). "Better" needs a measure that PPO was not trained on, the data's utility or else the
judge, and a difference whose 95 % interval leaves out zero.
"""

from collections.abc import Mapping
from typing import Any

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence.tables import text


def verdict(summary: Mapping[str, Any]) -> str:
    """Return what PPO did to the answers, in one sentence with n and intervals; differences are PPO - SFT."""
    ppo, by = summary["ppo"], summary["ppo"].get("chosen_by")
    chosen = f"chosen by the {'reward model' if by == 'reward' else by}, whose figures are optimistic" if by else ""
    clauses = [_finding(summary) if ppo["kept_update"] != 0 else "PPO handed on the SFT model unchanged"]
    handed_on = f" was handed on{', ' if chosen else ''}{chosen}"
    if ppo["stopped"] is not None:
        clauses.append(
            f"the guard stopped PPO ({ppo['stopped']}) and the policy of update {ppo['kept_update']}{handed_on}"
        )
    elif ppo["kept_update"] != ppo["updates"]:
        clauses.append(f"the policy of update {ppo['kept_update']} of {ppo['updates']}{handed_on}")
    elif chosen:
        clauses.append(f"the policy was {chosen}")
    if ppo["forced"]:
        clauses.append("PPO was trained although a gate failed (force=true)")
    seeds = summary["seeds"]
    if seeds is None:
        clauses.append(f"one training seed ({summary['seed']})")
    else:
        clauses.append(f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} training seeds collapsed")
    return f"{'; '.join(clauses)}."


def _finding(summary: Mapping[str, Any]) -> str:
    evaluation, fault = summary["evaluation"], summary["ppo"]["judge_fault"]
    gain, rates = evaluation["paired"]["ppo_minus_sft"], evaluation["models"]["ppo"]
    usable = [one for one in metrics.MEASURES if gain[one.key] is not None]
    usable = [one for one in usable if fault is None or one is not metrics.JUDGE_REWARD]
    quality = usable[0] if usable[0] is not metrics.REWARD else None  # PPO was not trained on it
    wins = ", ".join(
        f"{text(rates[won.key], won.unit)} by {won.label.rpartition(' ')[2]}"
        for measure, won in zip(metrics.MEASURES, metrics.WINS_VS_SFT, strict=True)
        if measure in usable and rates.get(won.key) is not None
    )
    figures = ", ".join(f"{_name(one)} {text(gain[one.key], one.unit)}" for one in usable)
    parts = [
        _claim(evaluation, quality),
        *([f"PPO wins against SFT: {wins}"] if wins else []),
        f"PPO - SFT on the same {evaluation['prompts']} held-out prompts: {figures}"
        + (", with neither a utility nor a usable judge" if quality is None else ""),
    ]
    return "; ".join(parts) + _longer(evaluation["models"])


def _claim(evaluation: Mapping[str, Any], quality: Metric | None) -> str:
    gain, models, n = evaluation["paired"]["ppo_minus_sft"], evaluation["models"], evaluation["prompts"]

    def direction(metric: Metric) -> str | None:
        return "rose" if gain[metric.key]["low"] > 0 else "fell" if gain[metric.key]["high"] < 0 else None

    def change(metric: Metric) -> str:
        before, after = (text(float(models[name][metric.key]["mean"]), metric.unit) for name in ("sft", "ppo"))
        return f"{_name(metric)} {direction(metric)} from {before} to {after}"

    reward = direction(metrics.REWARD)
    if quality is not None and direction(quality) == "rose":
        but = "" if reward == "rose" else ", though no rise of its reward shows"
        return f"PPO's answers are better: {change(quality)}{but}"
    if quality is not None and direction(quality) == "fell":
        exploited = f" although its {change(metrics.REWARD)}: PPO exploited the reward model, and"
        return f"PPO's answers are worse{exploited if reward == 'rose' else ':'} {change(quality)}"
    if reward is None:
        return f"No difference between PPO and SFT shows on {n} prompts"
    claim = f"PPO's {change(metrics.REWARD)}"
    if quality is None:
        return f"{claim}, which alone does not show better answers" if reward == "rose" else claim
    exploited = ": PPO may have exploited the reward model" if reward == "rose" else ""
    return f"{claim}, but no change of its {_name(quality)} shows on {n} prompts{exploited}"


def _longer(models: Mapping[str, Any]) -> str:
    """How much longer or shorter the answers became, where the intervals of the mean lengths do not overlap."""
    sft, ppo = (models[name][metrics.TOKENS.key] for name in ("sft", "ppo"))
    if not sft["mean"] or (ppo["low"] <= sft["high"] and ppo["high"] >= sft["low"]):
        return ""
    change = ppo["mean"] / sft["mean"] - 1
    return f"; PPO's answers are {100 * abs(change):.0f} % {'longer' if change > 0 else 'shorter'}"


def _name(metric: Metric) -> str:
    return metric.label.lower()
