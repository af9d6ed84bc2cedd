"""Turn a reward model's margins on held-out pairs into what its user must know: is it as often right as it is sure?

A score difference d claims that its preferred side wins with probability sigmoid(d) (Bradley and Terry 1952). Over bins
of that claim the share of right choices should be as high as claimed; if it is lower, PPO is paid for a confidence that
the labels do not bear out. And a score that follows length rewards length (Singhal et al. 2023, arXiv:2310.03716).
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from gpt2_rlhf.evidence.intervals import bootstrap, bootstrap_above_zero, wilson

_BINS = 5  # of equal width from 0.5 to 1: a hundred of the quickstart's pairs each


def calibration(margins: np.ndarray, seed: int) -> dict[str, Any]:
    """Claimed and observed share of right choices; ready for JSON. `margins`: score of chosen less that of rejected.

    `bins` holds those that have pairs: `from` and `to` of the claim sigmoid(|margin|), its mean `predicted`, and
    `observed`, how often the preferred side is the chosen one, with Wilson's interval and n; a margin of 0 is right by
    one half. `expected_error` is the mean over pairs of |observed - predicted| of their bin (Guo et al. 2017,
    arXiv:1706.04599): 0 at best, though chance alone keeps it above; the low end of its interval allows for that.
    """
    with np.errstate(over="ignore"):  # exp(-|d|) goes to 0 as it should
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
                "observed": asdict(wilson(float(right[bins == one].sum()), int((bins == one).sum()))),
            }
            for one in filled.tolist()
        ],
        "expected_error": asdict(bootstrap_above_zero(expected_error, margins.size, seed)),
    }


def length_bias(margins: np.ndarray, extra_tokens: np.ndarray, seed: int) -> dict[str, Any]:
    """How far the scores follow length; ready for JSON. Arrays of shape (pairs,), each chosen less rejected.

    `correlation` is Pearson's, of the score difference with the length difference in tokens, null where either has no
    spread. `accuracy_chosen_longer` and `accuracy_chosen_shorter` are shares with Wilson's interval, a tie counting one
    half, null without such pairs: far apart, the model goes by length.
    """
    return {
        "correlation": _correlation(margins, extra_tokens.astype(float), seed),
        "accuracy_chosen_longer": _accuracy(margins[extra_tokens > 0]),
        "accuracy_chosen_shorter": _accuracy(margins[extra_tokens < 0]),
    }


def _correlation(left: np.ndarray, right: np.ndarray, seed: int) -> dict[str, Any] | None:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    left, right = left - left.mean(), right - right.mean()  # nothing is lost to the squares of large means

    def pearson(index: np.ndarray) -> np.ndarray:
        one, other = left[index], right[index]
        one_mean, other_mean = one.mean(axis=1), other.mean(axis=1)
        covariance = (one * other).mean(axis=1) - one_mean * other_mean
        variances = ((one**2).mean(axis=1) - one_mean**2) * ((other**2).mean(axis=1) - other_mean**2)
        has_spread = (np.ptp(one, axis=1) > 0) & (np.ptp(other, axis=1) > 0)
        return np.where(has_spread, covariance / np.sqrt(np.where(has_spread, variances, 1.0)), np.nan)

    return asdict(bootstrap(pearson, left.size, seed))


def _accuracy(margins: np.ndarray) -> dict[str, Any] | None:
    if margins.size == 0:
        return None
    return asdict(wilson(float((0.5 + 0.5 * np.sign(margins)).sum()), margins.size))
