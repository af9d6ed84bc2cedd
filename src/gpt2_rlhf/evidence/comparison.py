"""Turn what was measured on each model's answers to the same prompts into estimates: per model, paired, by subset.

Arrays in, JSON out, and no model in between. Every estimate is {mean, low, high, n} with its 95 % interval; those over
prompts resample whole prompts, so that the comparison of two models stays paired.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from gpt2_rlhf.evidence.intervals import bootstrap_mean, bootstrap_ratio, bootstrap_share

BEST_OF_N = "best_of_n"
_PAIRS = (("sft", "base"), ("ppo", "sft"), ("ppo", "base"), ("ppo", BEST_OF_N))  # the later one less the earlier
_SAME_LENGTH_SHARE, _SAME_LENGTH_TOKENS = 0.1, 2  # of the longer answer; short answers may differ by whole tokens


@dataclass(frozen=True, eq=False)
class Measured:
    """One model's answers in figures, arrays of shape (prompts,); None where the figure is unknown or makes no sense.

    `ended`: 1 where EOS was written. `answer_tokens`: without EOS. `kl_to_sft_nats` is the k1 estimate, sum of log
    p_model - log p_sft over the answer's tokens (EOS included) at the sampling temperature: positive on average, though
    a single answer may fall below zero. `chosen_nll_nats` and `chosen_tokens`: the sum over the data's chosen answer to
    the prompt and its EOS, at temperature 1, and how many tokens those are.
    """

    rewards: np.ndarray
    judge_rewards: np.ndarray | None
    utilities: np.ndarray | None
    answer_tokens: np.ndarray
    ended: np.ndarray
    distinct_2: np.ndarray
    kl_to_sft_nats: np.ndarray | None
    chosen_nll_nats: np.ndarray | None
    chosen_tokens: np.ndarray | None

    def at(self, prompts: np.ndarray) -> "Measured":
        """The figures of some of the prompts, by a mask or by their numbers."""
        kept: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        kept |= {name: values[prompts] for name, values in kept.items() if values is not None}
        return Measured(**kept)


def compare(
    measured: Mapping[str, Measured], groups: Mapping[str, np.ndarray], score_std: float, seed: int
) -> dict[str, Any]:
    """`models`, `paired` and `by_subset` of the evaluate stage's metrics.

    measured: base, sft and ppo, and best_of_n where it was asked for. groups: masks over the prompts by name.
    score_std: the standard deviation of the reward model's scores on held-out answers. A win rate counts a tie as one
    half, and is null against itself.
    """

    def win_rate(name: str, rival: str) -> dict[str, Any] | None:
        difference = measured[name].rewards - measured[rival].rewards
        return None if name == rival else _share(0.5 + 0.5 * np.sign(difference), seed)

    return {
        "models": {
            name: {
                **model_figures(one, seed),
                "win_rate_vs_base": win_rate(name, "base"),
                "win_rate_vs_sft": win_rate(name, "sft"),
            }
            for name, one in measured.items()
        },
        "paired": {
            f"{later}_minus_{earlier}": paired_figures(measured[later], measured[earlier], score_std, seed)
            for later, earlier in _PAIRS
            if earlier in measured
        },
        "by_subset": {
            name: {
                "prompts": int(prompts.sum()),
                "models": {model: model_figures(one.at(prompts), seed) for model, one in measured.items()},
                "ppo_minus_sft": paired_figures(
                    measured["ppo"].at(prompts), measured["sft"].at(prompts), score_std, seed
                ),
            }
            for name, prompts in groups.items()
        },
    }


def model_figures(one: Measured, seed: int) -> dict[str, Any]:
    """Means over one model's answers, and its perplexity on the chosen ones; null where unknown."""
    return {
        "reward": _estimate(one.rewards, seed),
        "judge_reward": _estimate(one.judge_rewards, seed),
        "utility": _estimate(one.utilities, seed),
        "answer_tokens": _estimate(one.answer_tokens, seed),
        "eos_rate": _share(one.ended, seed),
        "distinct_2": _estimate(one.distinct_2, seed),
        "kl_to_sft_nats": _estimate(one.kl_to_sft_nats, seed),
        "chosen_perplexity": _perplexity(one.chosen_nll_nats, one.chosen_tokens, seed),
    }


def paired_figures(later: Measured, earlier: Measured, score_std: float, seed: int) -> dict[str, Any]:
    """What changed from one model to another on the same prompts; positive where the later one has more.

    `reward_sd` is the difference of rewards in standard deviations of the reward model's scores, which unlike its raw
    points can be compared between reward models; null where these have no spread. `length_matched` counts only prompts
    where the lengths of the two answers differ by at most 2 tokens or 10 % of the longer one; null where none do.
    """
    reward = later.rewards - earlier.rewards
    judge_reward = _difference(later.judge_rewards, earlier.judge_rewards)
    by_reward = _outcomes(reward, seed)
    return {
        "reward": _estimate(reward, seed),
        "judge_reward": _estimate(judge_reward, seed),
        "utility": _estimate(_difference(later.utilities, earlier.utilities), seed),
        "reward_sd": None if score_std == 0 else _estimate(reward / score_std, seed),
        "got_better": by_reward["win"],
        "got_worse": by_reward["loss"],
        "unchanged": by_reward["tie"],
        "by_reward": by_reward,
        "by_judge": None if judge_reward is None else _outcomes(judge_reward, seed),
        "length_matched": _length_matched(reward, later.answer_tokens, earlier.answer_tokens, seed),
    }


def best_of(rewards: np.ndarray) -> np.ndarray:
    """Which draw the reward model likes most, shape (prompts,); the first of equals. rewards: (draws, prompts)."""
    return rewards.argmax(axis=0)


def best_of_kl_bound_nats(n: int) -> float:
    """The KL of best-of-n to the model that the n answers are drawn from: at most log n - (n - 1) / n.

    Stiennon et al. 2020 (arXiv:2009.01325, appendix G.3) and Gao et al. 2023 (arXiv:2210.10760); an upper bound, close
    where no answer is likely to be drawn twice (Beirami et al. 2024, arXiv:2401.01879). Computed, not sampled.
    """
    return math.log(n) - (n - 1) / n


def _estimate(values: np.ndarray | None, seed: int) -> dict[str, Any] | None:
    return None if values is None else asdict(bootstrap_mean(values, seed))


def _share(outcomes: np.ndarray, seed: int) -> dict[str, Any]:
    return asdict(bootstrap_share(outcomes, seed))


def _difference(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    return None if left is None or right is None else left - right


def _outcomes(difference: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "win": _share(difference > 0, seed),
        "tie": _share(difference == 0, seed),
        "loss": _share(difference < 0, seed),
    }


def _length_matched(
    reward: np.ndarray, later_tokens: np.ndarray, earlier_tokens: np.ndarray, seed: int
) -> dict[str, Any] | None:
    longer = np.maximum(later_tokens, earlier_tokens)
    allowed = np.maximum(_SAME_LENGTH_TOKENS, _SAME_LENGTH_SHARE * longer)
    alike = np.abs(later_tokens - earlier_tokens) <= allowed
    return {**_outcomes(reward[alike], seed), "pairs": int(alike.sum())} if alike.any() else None


def _perplexity(nll_nats: np.ndarray | None, tokens: np.ndarray | None, seed: int) -> dict[str, Any] | None:
    """exp(sum of nats / sum of tokens); a percentile interval may be transformed by its ends."""
    if nll_nats is None or tokens is None:
        return None
    loss = bootstrap_ratio(nll_nats, tokens, seed)
    return {"mean": math.exp(loss.mean), "low": math.exp(loss.low), "high": math.exp(loss.high), "n": loss.n}
