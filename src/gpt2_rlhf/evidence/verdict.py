"""Turn a run's figures into one sentence that a careful reader would sign.

A higher reward alone is no better answer: PPO is paid by the reward model and comes to exploit its errors (Gao et al.
2023, arXiv:2210.10760). Better needs a measure that PPO was not trained on, the data's utility or else the judge, and
a difference whose 95 % interval leaves out zero.
"""

from collections.abc import Mapping
from typing import Any

from gpt2_rlhf.evidence.terminal import estimate_text

Estimate = Mapping[str, float]


def verdict(summary: Mapping[str, Any]) -> str:
    """What PPO did to the answers, in one sentence with n and intervals; differences are PPO's less SFT's."""
    ppo = summary["ppo"]
    clauses = [_finding(summary) if ppo["kept_update"] != 0 else "PPO handed on the SFT model unchanged"]
    if ppo["stopped"] is not None:
        clauses.append(
            f"the guard stopped PPO ({ppo['stopped']}) and the policy of update {ppo['kept_update']} was handed on"
        )
    elif ppo["kept_update"] != ppo["updates"]:
        clauses.append(f"the policy of update {ppo['kept_update']} of {ppo['updates']} was handed on")
    if ppo["forced"]:
        clauses.append("PPO was trained past a gate by force")
    seeds = summary["seeds"]
    if seeds is None:
        clauses.append(f"one training seed ({summary['seed']})")
    else:
        clauses.append(f"{len(seeds['collapsed'])} of {len(seeds['by_seed'])} training seeds collapsed")
    return f"{'; '.join(clauses)}."


def _finding(summary: Mapping[str, Any]) -> str:
    gain, n = summary["evaluation"]["paired"]["ppo_minus_sft"], summary["evaluation"]["prompts"]
    reward = gain["reward"]
    quality = "utility"
    truth = gain["utility"]
    if truth is None and summary["ppo"]["judge_fault"] is None:  # a judge no better than chance is no witness
        quality, truth = "judge's reward", gain["judge_reward"]
    over = f"on the same {n} held-out prompts, PPO less SFT"
    said = f"reward {estimate_text(reward, False)}"
    if truth is None:
        return f"{_by_reward_alone(reward, n)}: {over}, {said}; neither utility nor a fit judge was there to ask"
    said = f"{quality} {estimate_text(truth, False)}, {said}"
    judge = gain["judge_reward"]
    if quality == "utility" and judge is not None and summary["ppo"]["judge_fault"] is None:
        said += f", judge's reward {estimate_text(judge, False)}"
    return f"{_by(quality, truth, reward, n)}: {over}, {said}"


def _by(quality: str, truth: Estimate, reward: Estimate, n: int) -> str:
    if _rose(truth):
        return f"PPO answers better than SFT by {quality}" + (
            "" if _rose(reward) else ", though its reward did not rise"
        )
    if _fell(truth):
        fooled = "The reward model was fooled: PPO's reward rose and its" if _rose(reward) else "PPO answers worse: its"
        return f"{fooled} {quality} fell"
    if _rose(reward):
        shown = f"PPO's reward rose and its {quality} did not, as far as {n} prompts can show"
        return f"{shown}: the reward model may be fooled"
    if _fell(reward):
        return f"PPO's reward fell, without a change in {quality} that {n} prompts can show"
    return f"No difference between PPO and SFT that {n} prompts can show"


def _by_reward_alone(reward: Estimate, n: int) -> str:
    if _rose(reward):
        return "PPO's reward rose, which alone does not make its answers better"
    return "PPO's reward fell" if _fell(reward) else f"No difference between PPO and SFT that {n} prompts can show"


def _rose(difference: Estimate) -> bool:
    return difference["low"] > 0


def _fell(difference: Estimate) -> bool:
    return difference["high"] < 0
