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

Estimate = Mapping[str, float]


def verdict(summary: Mapping[str, Any]) -> str:
    """Return what PPO did to the answers, in one sentence with n and intervals; differences are PPO - SFT."""
    ppo = summary["ppo"]
    clauses = [_finding(summary) if ppo["kept_update"] != 0 else "PPO handed on the SFT model unchanged"]
    if ppo["stopped"] is not None:
        clauses.append(
            f"the guard stopped PPO ({ppo['stopped']}) and the policy of update {ppo['kept_update']} was handed on"
        )
    elif ppo["kept_update"] != ppo["updates"]:
        clauses.append(f"the policy of update {ppo['kept_update']} of {ppo['updates']} was handed on")
    if ppo["forced"]:
        clauses.append("PPO was trained although a gate failed (force=true)")
    seeds = summary["seeds"]
    if seeds is None:
        clauses.append(f"one training seed ({summary['seed']})")
    else:
        clauses.append(f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} training seeds collapsed")
    return f"{'; '.join(clauses)}."


def _finding(summary: Mapping[str, Any]) -> str:
    evaluation, judge_is_usable = summary["evaluation"], summary["ppo"]["judge_fault"] is None
    gain, n = evaluation["paired"]["ppo_minus_sft"], evaluation["prompts"]
    independent = [metrics.UTILITY, *([metrics.JUDGE_REWARD] if judge_is_usable else [])]  # PPO was not trained on them
    measured = [one for one in independent if gain[one.key] is not None]
    quality = measured[0] if measured else None
    # utility first, then the reward, and the judge beside the utility
    shown = [*measured[:1], metrics.REWARD, *measured[1:]]
    figures = ", ".join(f"{_name(one)} {text(gain[one.key], one.unit)}" for one in shown)
    differences = f"PPO - SFT on the same {n} held-out prompts: {figures}"
    if quality is None:
        differences += ", with neither a utility nor a usable judge"
    return f"{_claim(evaluation, quality)}; {differences}{_longer(evaluation['models'])}"


def _claim(evaluation: Mapping[str, Any], quality: Metric | None) -> str:
    gain, models, n = evaluation["paired"]["ppo_minus_sft"], evaluation["models"], evaluation["prompts"]

    def change(metric: Metric, verb: str) -> str:
        before, after = (models[name][metric.key]["mean"] for name in ("sft", "ppo"))
        return f"{_name(metric)} {verb} from {text(float(before), metric.unit)} to {text(float(after), metric.unit)}"

    reward = gain["reward"]
    reward_rose, reward_fell = _rose(reward), _fell(reward)
    none = f"No difference between PPO and SFT shows on {n} prompts"
    if quality is None:
        if reward_rose:
            return f"PPO's {change(metrics.REWARD, 'rose')}, which alone does not show better answers"
        return f"PPO's {change(metrics.REWARD, 'fell')}" if reward_fell else none
    if _rose(gain[quality.key]):
        but = "" if reward_rose else ", though no rise of its reward shows"
        return f"PPO's answers are better: {change(quality, 'rose')}{but}"
    if _fell(gain[quality.key]):
        but = (
            f"although its {change(metrics.REWARD, 'rose')}: PPO exploited the reward model, and"
            if reward_rose
            else ":"
        )
        return f"PPO's answers are worse{' ' if reward_rose else ''}{but} {change(quality, 'fell')}"
    unchanged = f"no change of its {_name(quality)} shows on {n} prompts"
    if reward_rose:
        return f"PPO's {change(metrics.REWARD, 'rose')}, but {unchanged}: PPO may have exploited the reward model"
    return f"PPO's {change(metrics.REWARD, 'fell')}, but {unchanged}" if reward_fell else none


def _longer(models: Mapping[str, Any]) -> str:
    """How much longer or shorter the answers became, where the intervals of the mean lengths do not overlap."""
    sft, ppo = (models[name][metrics.TOKENS.key] for name in ("sft", "ppo"))
    percent = f"{100 * abs(ppo['mean'] / sft['mean'] - 1):.0f} %" if sft["mean"] else ""
    if percent and ppo["low"] > sft["high"]:
        return f"; PPO's answers are {percent} longer"
    return f"; PPO's answers are {percent} shorter" if percent and ppo["high"] < sft["low"] else ""


def _name(metric: Metric) -> str:
    return metric.label.lower()


def _rose(difference: Estimate) -> bool:
    return difference["low"] > 0


def _fell(difference: Estimate) -> bool:
    return difference["high"] < 0
