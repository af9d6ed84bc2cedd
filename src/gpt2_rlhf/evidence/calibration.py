"""Calibration and length bias of a reward model, from its margins on held-out pairs.

A score difference d claims that the preferred answer wins with probability sigmoid(d) (Bradley and Terry 1952). Among
pairs with similar claims, the share of right choices should equal the claim. Where it is lower, PPO is rewarded for a
confidence that the labels do not support. A score that correlates with length rewards length (Singhal et al. 2023,
arXiv:2310.03716).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt2_rlhf.evidence.intervals import Estimate, bootstrap, bootstrap_above_zero, wilson_of_wins

_BINS = 5  # of equal width from 0.5 to 1: about a hundred of the quickstart's pairs each


def calibration(margins: np.ndarray, seed: int) -> dict[str, Any]:
    """Return claimed and observed shares of right choices, ready for JSON. `margins`: score of chosen less rejected.

    `bins` lists the bins that hold pairs: `from` and `to` bound the claim sigmoid(|margin|), `predicted` is its mean,
    and `observed` is the share of pairs whose preferred answer is the chosen one (Wilson's interval, n). A margin of 0
    counts one half. `expected_error` is the mean over pairs of |observed - predicted| of their bin (Guo et al. 2017,
    arXiv:1706.04599). Noise alone keeps it above 0; the low end of its interval allows for that.
    """
    claims = 1 / (1 + np.exp(-np.abs(margins)))
    right = 0.5 + 0.5 * np.sign(margins)
    bins = np.minimum(((claims - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    filled = np.unique(bins)
    gaps = [np.where(bins == one, right - claims, 0.0) for one in filled]

    def expected_error(index: np.ndarray) -> np.ndarray:
        return np.sum([np.abs(gap[index].mean(axis=1)) for gap in gaps], axis=0)

    return {
        "bins": [
            {
                "from": 0.5 + one / (2 * _BINS),
                "to": 0.5 + (one + 1) / (2 * _BINS),
                "predicted": float(claims[bins == one].mean()),
                "observed": wilson_of_wins(margins[bins == one]),
            }
            for one in filled.tolist()
        ],
        "expected_error": bootstrap_above_zero(expected_error, margins.size, seed),
    }


def length_bias(margins: np.ndarray, extra_tokens: np.ndarray, seed: int) -> dict[str, Any]:
    """Return how far the scores follow length, ready for JSON. Arrays of shape (pairs,): chosen less rejected.

    `correlation` is Pearson's, of the score difference with the length difference in tokens; null where either has no
    spread. The two accuracies are the shares of right choices where the chosen answer is longer and where it is
    shorter (a tie counts one half); null without such pairs. If they are far apart, the model prefers by length.
    """
    longer, shorter = margins[extra_tokens > 0], margins[extra_tokens < 0]
    return {
        "correlation": _correlation(margins, extra_tokens.astype(float), seed),
        "accuracy_chosen_longer": wilson_of_wins(longer) if longer.size else None,
        "accuracy_chosen_shorter": wilson_of_wins(shorter) if shorter.size else None,
    }


def _correlation(left: np.ndarray, right: np.ndarray, seed: int) -> Estimate | None:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    left, right = left - left.mean(), right - right.mean()  # squares of large means would lose digits

    def pearson(index: np.ndarray) -> np.ndarray:
        one, other = left[index], right[index]
        one_mean, other_mean = one.mean(axis=1), other.mean(axis=1)
        covariance = (one * other).mean(axis=1) - one_mean * other_mean
        variances = ((one**2).mean(axis=1) - one_mean**2) * ((other**2).mean(axis=1) - other_mean**2)
        has_spread = (np.ptp(one, axis=1) > 0) & (np.ptp(other, axis=1) > 0)
        return np.where(has_spread, covariance / np.sqrt(np.where(has_spread, variances, 1.0)), np.nan)

    return bootstrap(pearson, left.size, seed)


def length_alone(report: Mapping[str, Any]) -> float:
    """Return how often length alone is right: the longer or the shorter answer, whichever is right more often."""
    longer = report["baselines"]["longer_answer_wins"]["mean"]
    return max(longer, 1 - longer)


def reward_model_fault(report: Mapping[str, Any], name: str = "reward") -> str | None:
    """Return a fault if the reward model of stage `name` is, by its report, no better than chance or length alone."""
    accuracy, by_length = report["accuracy"], length_alone(report)
    interval = f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    found = f"{name}: the reward model is right on {100 * accuracy['mean']:.1f} % {interval} of held-out pairs"
    what_next = f"give it more pairs (data.train_pairs, data.shares.{name}) or steps, and check the labels"
    if accuracy["low"] <= 0.5:
        return f"{found}, where chance is 50 %; {what_next}"
    if accuracy["mean"] <= by_length:
        rule = "longer" if report["baselines"]["longer_answer_wins"]["mean"] >= 0.5 else "shorter"
        return f"{found}, and taking the {rule} answer is right on {100 * by_length:.1f} %; {what_next}"
    return None
