import math

import numpy as np
import pytest

from gpt2_rlhf.evidence import intervals
from gpt2_rlhf.evidence.intervals import (
    Estimate,
    bootstrap,
    bootstrap_above_zero,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
    bootstrap_share_difference,
    student_t,
    wilson,
)


def test_wilson_agrees_with_newcombe_1998_table_1():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", method 3, to four digits
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), ends in published.items():
        estimate = wilson(successes, n)
        assert (round(estimate["low"], 4), round(estimate["high"], 4)) == ends


def test_wilson_at_all_successes_still_has_width():
    estimate = wilson(20, 20)
    assert estimate["mean"] == estimate["high"] == 1.0
    assert estimate["low"] == pytest.approx(1 - 0.1611, abs=5e-5)  # the mirror of 0 of 20


def test_a_tie_counts_one_half():
    assert wilson(0.5, 1)["mean"] == 0.5
    assert wilson(10.5, 20)["mean"] == 0.525


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes: float, n: int):
    with pytest.raises(ValueError, match="successes among"):
        wilson(successes, n)


def test_bootstrap_interval_of_many_normal_items_is_the_normal_interval():
    values = np.random.default_rng(3).normal(5.0, 2.0, size=4000)
    estimate = bootstrap_mean(values)
    half_width = 1.96 * values.std() / math.sqrt(4000)
    assert estimate["mean"] == pytest.approx(values.mean())
    assert estimate["n"] == 4000
    assert estimate["low"] == pytest.approx(values.mean() - half_width, abs=0.06 * half_width)
    assert estimate["high"] == pytest.approx(values.mean() + half_width, abs=0.06 * half_width)


def test_bootstrap_interval_covers_the_true_mean_in_about_95_of_100_samples():
    generator = np.random.default_rng(0)
    estimates = [bootstrap_mean(generator.exponential(1.0, size=60), seed=trial) for trial in range(200)]
    covered = sum(estimate["low"] <= 1.0 <= estimate["high"] for estimate in estimates)
    # 95 % less the skew of 60 exponentials; 200 trials at 0.93 have a standard deviation of 3.6
    assert 175 <= covered <= 198


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(1).normal(size=50)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values, seed=4) != bootstrap_mean(values, seed=5)


def test_interval_does_not_depend_on_the_size_of_blocks_of_resamples(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(1).normal(size=50)
    whole = bootstrap_mean(values)
    monkeypatch.setattr(intervals, "_INDICES_AT_ONCE", 70)  # one resample at a time
    assert bootstrap_mean(values) == whole


def test_equal_items_have_an_interval_of_zero_width():
    estimate = bootstrap_mean([0.25] * 7)
    assert estimate == Estimate(mean=0.25, low=0.25, high=0.25, n=7)


def test_ratio_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    estimate = bootstrap_ratio([1.0, 30.0], [1, 10])
    assert estimate["mean"] == pytest.approx(31 / 11)  # the mean of ratios would be 2
    assert (estimate["low"], estimate["high"]) == (1.0, 3.0)  # either row drawn twice
    assert estimate["n"] == 2


def test_ratio_over_ones_is_the_mean():
    values = np.random.default_rng(2).normal(size=30)
    ratio, mean = bootstrap_ratio(values, np.ones(30)), bootstrap_mean(values)
    assert list(ratio.values()) == pytest.approx(list(mean.values()))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_missing_or_not_finite_items_are_refused(values: list):
    with pytest.raises(ValueError, match=r"expected at least one item|not finite"):
        bootstrap_mean(values)


def test_ratio_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="2 numerators for 1 denominators"):
        bootstrap_ratio([1.0, 2.0], [1.0])


def test_bootstrap_gives_any_statistic_the_interval_of_its_resamples():
    array = np.array([1.0, 2.0, 6.0, 7.0])
    assert bootstrap(lambda index: array[index].mean(axis=1), 4, seed=3) == bootstrap_mean(array, seed=3)
    largest = bootstrap(lambda index: array[index].max(axis=1), 4, seed=3)
    # 7 is in 68 % of the resamples of four, 6 or 7 in all but 1 of 16: so the 2.5 % point is 2
    assert (largest["mean"], largest["low"], largest["high"]) == (7.0, 2.0, 7.0)


def test_resamples_where_the_statistic_is_undefined_are_left_out():
    array = np.array([1.0, 3.0])
    spread = bootstrap(lambda index: np.where(np.ptp(array[index], axis=1) > 0, 2.0, np.nan), 2)
    assert spread == Estimate(mean=2.0, low=2.0, high=2.0, n=2)


def test_the_interval_of_an_absolute_mean_reaches_zero_where_noise_explains_the_mean():
    signed = np.repeat([-1.0, 1.0], 50)  # the mean of 100 has a standard error of 0.1

    def estimate(shift: float) -> Estimate:
        return bootstrap_above_zero(lambda index: np.abs((signed + shift)[index].mean(axis=1)), 100)

    small = estimate(0.05)
    assert small["mean"] == pytest.approx(0.05)
    assert small["low"] == 0.0
    assert small["high"] == pytest.approx(0.05 + 1.96 * 0.1, abs=0.02)
    large = estimate(0.5)
    assert (large["low"], large["high"]) == pytest.approx((0.5 - 1.96 * 0.1, 0.5 + 1.96 * 0.1), abs=0.02)


def test_a_difference_of_shares_is_paired_and_has_a_width_also_where_no_item_changes():
    later, earlier = np.array([True, True, False, False] * 5), np.array([False, True, False, True] * 5)
    assert bootstrap_share_difference(later, earlier) == bootstrap_mean([1.0, 0.0, 0.0, -1.0] * 5)
    # Agresti and Min: outcomes of 0.5, 0.5, 0.5 and n + 0.5 have a variance of (0.5 + 0.5) / (n + 2)
    same = bootstrap_share_difference(later, later)
    assert same == pytest.approx({"mean": 0.0, "low": -1.959964 / 22, "high": 1.959964 / 22, "n": 20})
    all_rose = bootstrap_share_difference(np.ones(20), np.zeros(20))
    assert all_rose["mean"] == all_rose["high"] == 1.0
    assert 0.7 < all_rose["low"] < 0.95
    assert all_rose["low"] == -bootstrap_share_difference(np.zeros(20), np.ones(20))["high"]


def test_a_share_of_all_or_none_has_the_interval_of_wilson_and_any_other_a_bootstrap_interval():
    assert bootstrap_share([1, 1, 1, 1]) == wilson(4, 4)
    assert bootstrap_share([False] * 9) == wilson(0, 9)
    for mixed in ([1, 0, 1, 1], [0.5, 0.5, 0.5], [1, 0.5]):
        assert bootstrap_share(mixed, 3) == bootstrap_mean(mixed, 3)


@pytest.mark.parametrize("freedom", [15, 63, 255])
@pytest.mark.parametrize("level", [0.025, 1e-4, 1e-7])
def test_student_t_is_exceeded_with_at_most_the_given_probability(freedom: int, level: float):
    # the density's integral beyond the bound, with x = 1 / u
    u = np.linspace(0, 1 / student_t(level, freedom), 200_001)[1:]
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    probability = np.trapezoid(constant * (1 + 1 / (freedom * u**2)) ** (-(freedom + 1) / 2) / u**2, u)
    assert 0.93 * level <= probability <= 1.0001 * level
