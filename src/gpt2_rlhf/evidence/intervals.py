"""Estimate a mean, a ratio or a share from per-item figures, with its 95 % interval.

Means and ratios: percentile bootstrap over items (Efron 1979, "Bootstrap methods: another look at the jackknife").
Shares of a count: Wilson's score interval (Wilson 1927, "Probable inference, the law of succession, and statistical
inference"), which stays sensible at 0 and 1, where a bootstrap of equal items has no width.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np

_RESAMPLES = 2000
_OUTSIDE = 100  # resamples outside an interval of a high level, of which its ends are quantiles
_Z95 = 1.959963984540054  # the standard normal's 97.5 % point
_INDICES_AT_ONCE = 1_000_000  # 8 MB of int64, whatever n is


class Estimate(TypedDict):
    """A mean over n items and the ends of its 95 % interval, ready for JSON."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0, level: float = 0.95) -> Estimate:
    """Return a statistic of n items with its percentile-bootstrap interval over items, of this level.

    `statistic` maps item numbers of shape (resamples, n) to values of shape (resamples,). It must be finite for the
    items themselves; resamples where it is NaN (a correlation without spread, for example) are left out.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _INDICES_AT_ONCE // n)
    resamples = max(_RESAMPLES, round(_OUTSIDE / (1 - level)))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    resampled = np.concatenate([statistic(generator.integers(0, n, size=(size, n))) for size in sizes])
    low, high = np.quantile(resampled[~np.isnan(resampled)], ((1 - level) / 2, (1 + level) / 2))
    return Estimate(mean=float(statistic(np.arange(n)[None])[0]), low=float(low), high=float(high), n=n)


def bootstrap_above_zero(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> Estimate:
    """Return what `bootstrap` does, for a statistic that noise can only raise, such as a sum of absolute gaps.

    Resampling adds the noise a second time, so the percentile interval is too high and may exclude the statistic. The
    low end is therefore the pivotal one (Davison and Hinkley 1997, section 5.2.1), which removes that bias; it is never
    below 0. The high end stays the percentile: the pivotal one is too low where the true value is small.
    """
    plain = bootstrap(statistic, n, seed)
    mean, high = plain["mean"], plain["high"]
    return Estimate(mean=mean, low=max(0.0, min(mean, 2 * mean - high)), high=max(mean, high), n=n)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, level: float = 0.95) -> Estimate:
    """Return the mean of the items with its percentile-bootstrap interval over items.

    Raises:
        ValueError: there are no items, or one of them is not finite.
    """
    array = _checked(values)
    return bootstrap(lambda index: array[index].mean(axis=1), array.size, seed, level)


def bootstrap_share(outcomes: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean of items that are 0 (no), 1 (yes) or one half (a tie), with its interval over items.

    The interval is Wilson's where all items are 0 or all are 1, since resampling them gives no width for any n.

    Raises:
        ValueError: there are no items.
    """
    array = _checked(outcomes)
    if array.min() == array.max() and array[0] in (0.0, 1.0):
        return wilson(float(array.sum()), array.size)
    return bootstrap_mean(array, seed)


def bootstrap_share_difference(later: np.ndarray, earlier: np.ndarray, seed: int = 0) -> Estimate:
    """Return the share of yes among the later items less that among the earlier ones, paired by item.

    Where all items change alike, as where none does, resampling gives no width for any n. The ends are then those of
    Agresti and Min 2005, "Simple improved confidence intervals for comparing matched proportions": half an item is
    added to each outcome of a pair.

    Raises:
        ValueError: there are no items.
    """
    changes = _checked(np.subtract(later, earlier, dtype=np.float64))
    if changes.min() < changes.max():
        return bootstrap_mean(changes, seed)
    rose, fell = ((changes == sign).sum() + 0.5 for sign in (1, -1))
    n = changes.size + 2
    centre = (rose - fell) / n
    half_width = _Z95 * math.sqrt((rose + fell) / n - centre**2) / math.sqrt(n)
    low, high = max(-1.0, centre - half_width), min(1.0, centre + half_width)
    return Estimate(mean=float(changes[0]), low=low, high=high, n=changes.size)


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, seed: int = 0
) -> Estimate:
    """Return the sum of the numerators over the sum of the denominators (a mean per token, for example).

    Each resampled item brings both its numerator and its denominator.

    Raises:
        ValueError: there are no items, one is not finite, or the two differ in length.
    """
    above, below = _checked(numerators), _checked(denominators)
    if above.size != below.size:
        raise ValueError(f"{above.size} numerators for {below.size} denominators; expected as many")
    return bootstrap(lambda index: above[index].sum(axis=1) / below[index].sum(axis=1), above.size, seed)


def wilson(successes: float, n: int) -> Estimate:
    """Return the share of successes among n trials with Wilson's interval; a tie may count one half.

    Raises:
        ValueError: no trials, or a number of successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} trials; expected at least 1 trial and 0 to n successes")
    share = successes / n
    scale = 1 + _Z95**2 / n
    centre = (share + _Z95**2 / (2 * n)) / scale
    half_width = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2)) / scale
    # at 0 and n successes, rounding alone would put the end outside 0 to 1
    return Estimate(mean=share, low=max(0.0, centre - half_width), high=min(1.0, centre + half_width), n=n)


def wilson_of_wins(differences: np.ndarray) -> Estimate:
    """Return the share of differences above 0 with Wilson's interval; a difference of 0 counts one half."""
    return wilson(float((0.5 + 0.5 * np.sign(differences)).sum()), differences.size)


def student_t(level: float, freedom: int) -> float:
    """Return the value that Student's t with these degrees of freedom exceeds with probability `level`, at most 0.5.

    Approximated by Wallace 1959, "Bounds on normal approximations to Student's and the chi-square distributions". The
    true probability is below `level`, with 15 degrees of freedom by at most 7 % of it where `level` is 1e-7 or more.
    """
    z = -NormalDist().inv_cdf(level) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z**2 / freedom))


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"an array of shape {array.shape}; expected at least one item and one dimension")
    if not np.isfinite(array).all():
        raise ValueError(f"{(~np.isfinite(array)).sum()} of {array.size} items are not finite; expected finite numbers")
    return array
