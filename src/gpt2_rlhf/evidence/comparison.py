"""Compare models by their answers to the same prompts: per model, paired, and by subset of the prompts.

Every estimate is {mean, low, high, n} with its 95 % interval, ready for JSON. Intervals resample whole prompts, so the
comparison of two models is paired.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import intervals
from gpt2_rlhf.evidence.calibration import reward_model_fault
from gpt2_rlhf.evidence.intervals import Estimate
from gpt2_rlhf.evidence.measured import MEASURES, Measured

BEST_OF_N = "best_of_n"
ALL = ", all"  # ends the name of the group of all subsets of a kind, such as "helpful, all"
_SAME_LENGTH_SHARE, _SAME_LENGTH_TOKENS = 0.1, 2  # share of the longer answer, or tokens where that is more


def usable_measures(found: Mapping[str, Any]) -> list[Metric]:
    """Return the measures that a run has, first those that the policy was not trained on; no judge at chance.

    found: the metrics of the stages, as summary.json has them.
    """
    gain = found["evaluation"]["paired"][f"{methods.of(found)}_minus_sft"]
    known = [one for one in metrics.MEASURES if gain[one.key] is not None]
    return [one for one in known if judge_fault(found) is None or one is not metrics.JUDGE_REWARD]


def judge_fault(found: Mapping[str, Any]) -> str | None:
    """Return why the judge is not used, as PPO recorded it or by the judge's report; None if it is or there is none."""
    policy = found[methods.of(found)]
    if "judge_fault" in policy:
        return policy["judge_fault"]
    return found["judge"] and reward_model_fault(found["judge"], "judge")


def compare(
    measured: Mapping[str, Measured], groups: Mapping[str, np.ndarray], score_std: float, seed: int
) -> dict[str, Any]:
    """Return `models`, `paired` and `by_subset` of the evaluate stage's metrics.

    measured: base, sft and the policy by its method, and best_of_n if the settings ask for it.
    groups: masks over the prompts, by name.
    score_std: standard deviation of the reward model's scores on held-out answers.
    """
    policy = methods.of(measured)
    pairs = (("sft", "base"), (policy, "sft"), (policy, "base"), (policy, BEST_OF_N))  # later less earlier
    by_subset = {}
    for name, prompts in groups.items():
        part = {model: one.at(prompts) for model, one in measured.items()}
        by_subset[name] = {
            "prompts": int(prompts.sum()),
            "models": {model: model_figures(one, seed) for model, one in part.items()},
            f"{policy}_minus_sft": paired_figures(part[policy], part["sft"], score_std, seed),
        }
    return {
        "models": {
            name: {
                **model_figures(one, seed),
                **_win_rates(measured, name, "base", seed),
                **_win_rates(measured, name, "sft", seed),
            }
            for name, one in measured.items()
        },
        "paired": {
            f"{later}_minus_{earlier}": paired_figures(measured[later], measured[earlier], score_std, seed)
            for later, earlier in pairs
            if earlier in measured
        },
        "by_subset": by_subset,
    }


def answer_figures(one: Measured, seed: int) -> dict[str, Any]:
    """Return means over one model's answers; null where unknown."""
    return {
        **{key: estimate(getattr(one, key), seed) for key in MEASURES},
        "answer_tokens": estimate(one.tokens, seed),
        "eos_rate": _share(one.ended, seed),
        "distinct_2": estimate(one.distinct_2, seed),
    }


def model_figures(one: Measured, seed: int) -> dict[str, Any]:
    """Return means over one model's answers, its KL to SFT (k1) and its perplexity on the chosen answers."""
    return {
        **answer_figures(one, seed),
        **shares(one.refused, one.toxic, seed),
        "kl_to_sft_nats": estimate(one.kl_k1, seed),
        "chosen_perplexity": _perplexity(one.chosen_nll_nats, one.chosen_tokens, seed),
    }


def paired_figures(later: Measured, earlier: Measured, score_std: float, seed: int) -> dict[str, Any]:
    """Return later less earlier model on the same prompts.

    `reward_sd` is the difference of rewards in standard deviations of the reward model's scores, which, unlike raw
    scores, can be compared between reward models; null if the scores have no spread. `length_matched` counts only the
    prompts whose two answers differ in length by at most 2 tokens or 10 % of the longer one; null if there are none.
    """
    differences = _differences(later, earlier)
    reward, judge_reward = later.reward - earlier.reward, differences["judge_reward"]
    return {
        **{key: estimate(difference, seed) for key, difference in differences.items()},
        "reward_sd": None if score_std == 0 else estimate(reward / score_std, seed),
        "by_reward": _outcomes(reward, seed),
        "by_judge": None if judge_reward is None else _outcomes(judge_reward, seed),
        "length_matched": _length_matched(reward, later.tokens, earlier.tokens, seed),
        "refusal_rate": _share_difference(later.refused, earlier.refused, seed),
        "toxic_rate": _share_difference(later.toxic, earlier.toxic, seed),
    }


def shares(refused: np.ndarray | None, toxic: np.ndarray | None, seed: int) -> dict[str, Any]:
    """Return the shares of answers that refuse and that are toxic; null where that was not measured."""
    return {"refusal_rate": _share(refused, seed), "toxic_rate": _share(toxic, seed)}


def estimate(values: np.ndarray | None, seed: int) -> Estimate | None:
    """Return the mean of the values with its interval; None where they are unknown, or not finite after divergence."""
    return None if values is None or not np.isfinite(values).all() else intervals.bootstrap_mean(values, seed)


def best_of_kl_bound_nats(n: int) -> float:
    """Return an upper bound on the KL of best-of-n to the model that the n answers are sampled from.

    Stiennon et al. 2020 (arXiv:2009.01325, appendix G.3) and Gao et al. 2023 (arXiv:2210.10760). The bound is tight
    where no answer is likely to be sampled twice (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def _win_rates(measured: Mapping[str, Measured], name: str, rival: str, seed: int) -> dict[str, Any]:
    """Return the share of prompts on which a model's answer beats the rival's, by each measure; a tie is one half.

    The key without `_by` is by the reward model, whose reward PPO is trained to raise, so the others say more. A win
    rate is null by an unknown measure, and of a model against itself.
    """
    differences = _differences(measured[name], measured[rival]).values()
    return {
        f"win_rate_vs_{rival}{by}": None if name == rival or one is None else _share(0.5 + 0.5 * np.sign(one), seed)
        for by, one in zip(("", "_by_judge", "_by_utility"), differences, strict=True)
    }


def _share_difference(later: np.ndarray | None, earlier: np.ndarray | None, seed: int) -> Estimate | None:
    return None if later is None or earlier is None else intervals.bootstrap_share_difference(later, earlier, seed)


def _share(outcomes: np.ndarray | None, seed: int) -> Estimate | None:
    return None if outcomes is None else intervals.bootstrap_share(outcomes, seed)


def _differences(later: Measured, earlier: Measured) -> dict[str, np.ndarray | None]:
    pairs = {key: (getattr(later, key), getattr(earlier, key)) for key in MEASURES}
    return {key: None if one is None or other is None else one - other for key, (one, other) in pairs.items()}


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


def _perplexity(nll_nats: np.ndarray | None, tokens: np.ndarray | None, seed: int) -> Estimate | None:
    """Return exp(sum of nats / sum of tokens); exp of the ends of a percentile interval is the interval of exp."""
    if nll_nats is None or tokens is None:
        return None
    loss = intervals.bootstrap_ratio(nll_nats, tokens, seed)
    mean, low, high = (math.exp(loss[key]) for key in ("mean", "low", "high"))
    return Estimate(mean=mean, low=low, high=high, n=loss["n"])
