"""Turn per-item figures into a mean with its 95 % interval, so that no number is stated without its uncertainty.

Means and ratios: percentile bootstrap over items (Efron 1979, "Bootstrap methods: another look at the jackknife").
Shares of a count: Wilson's score interval (Wilson 1927, "Probable inference, the law of succession, and statistical
inference"), which stays sensible at 0 and 1, where a bootstrap of equal items has no width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_QUANTILES = (0.025, 0.975)
_Z95 = 1.959963984540054  # the standard normal's 97.5 % point
_INDICES_AT_ONCE = 1_000_000  # 8 MB of int64 at a time, whatever n is


@dataclass(frozen=True)
class Estimate:
    """A mean over n items and the ends of its 95 % interval; `dataclasses.asdict` makes it JSON."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> Estimate:
    """A statistic of n items and its percentile-bootstrap interval over items.

    `statistic` maps item numbers of shape (resamples, n) to values of shape (resamples,). Resamples where it is not
    defined (NaN: no spread for a correlation, say) are left out; over the items themselves it has to be finite.
    """
    value, resampled = _bootstrapped(statistic, n, seed)
    return _estimate(value, resampled, n)


def bootstrap_above_zero(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int = 0) -> Estimate:
    """As `bootstrap`, for a statistic that noise can only raise, such as a sum of absolute gaps; never below 0.

    Resampling adds the noise once more, so the percentile interval lies too high, at times above the statistic itself.
    The low end is therefore the pivotal one (Davison and Hinkley 1997, section 5.2.1), which takes that bias off; the
    high end stays the percentile, since the pivotal one falls short where the truth is small. On the cautious side.
    """
    value, resampled = _bootstrapped(statistic, n, seed)
    high = float(np.quantile(resampled, _QUANTILES[1]))
    return Estimate(value, max(0.0, min(value, 2 * value - high)), max(value, high), n)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of the items and its percentile-bootstrap interval over items.

    Raises:
        ValueError: there are no items, or one of them is not finite.
    """
    array = _checked(values)
    return bootstrap(lambda index: array[index].mean(axis=1), array.size, seed)


def bootstrap_share(outcomes: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of items that are 0 (no), 1 (yes) or one half (a tie), with its interval over items.

    Where all items are 0, or all 1, resampling gives no width, as if n did not matter: there it is Wilson's.

    Raises:
        ValueError: there are no items.
    """
    array = _checked(outcomes)
    if array.min() == array.max() and array[0] in (0.0, 1.0):
        return wilson(float(array.sum()), array.size)
    return bootstrap_mean(array, seed)


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, seed: int = 0
) -> Estimate:
    """Sum of the numerators over sum of the denominators, resampling items as a whole: a mean per token, say.

    Raises:
        ValueError: there are no items, one is not finite, or the two differ in length.
    """
    above, below = _checked(numerators), _checked(denominators)
    if above.size != below.size:
        raise ValueError(f"{above.size} numerators for {below.size} denominators")
    return bootstrap(lambda index: above[index].sum(axis=1) / below[index].sum(axis=1), above.size, seed)


def wilson(successes: float, n: int) -> Estimate:
    """The share of successes among n trials with Wilson's interval; a tie may count one half.

    Raises:
        ValueError: no trials, or a number of successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes among {n} trials")
    share = successes / n
    scale = 1 + _Z95**2 / n
    centre = (share + _Z95**2 / (2 * n)) / scale
    half_width = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2)) / scale
    # at 0 and n successes the bound is 0 or 1 but for rounding
    return Estimate(share, max(0.0, centre - half_width), min(1.0, centre + half_width), n)


def _checked(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"an interval needs a row of items, not an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{(~np.isfinite(array)).sum()} of {array.size} items are not finite")
    return array


def _resampled(n: int, seed: int) -> Iterator[np.ndarray]:
    """Item indices of all resamples, in blocks of shape (resamples, n)."""
    generator = np.random.default_rng(seed)
    block = max(1, _INDICES_AT_ONCE // n)
    for start in range(0, RESAMPLES, block):
        yield generator.integers(0, n, size=(min(block, RESAMPLES - start), n))


def _bootstrapped(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> tuple[float, np.ndarray]:
    """The statistic of the items themselves, and of the resamples where it is defined."""
    resampled = np.concatenate([statistic(index) for index in _resampled(n, seed)])
    return float(statistic(np.arange(n)[None])[0]), resampled[~np.isnan(resampled)]


def _estimate(mean: float, resampled: np.ndarray, n: int) -> Estimate:
    low, high = np.quantile(resampled, _QUANTILES)
    return Estimate(float(mean), float(low), float(high), n)
