import json
import math

import numpy as np
import pytest

from gpt2_rlhf.evidence.calibration import calibration, length_bias
from gpt2_rlhf.evidence.intervals import wilson


def log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_a_bin_has_the_mean_claim_and_the_share_of_right_choices():
    # claims 0.72 and 0.76 that chosen wins, 0.74 that rejected does: two of three are right
    report = calibration(np.array([log_odds(0.72), log_odds(0.76), -log_odds(0.74)]), seed=0)
    (only,) = report["bins"]
    expected = wilson(2, 3)
    assert (only["from"], only["to"]) == (0.7, 0.8)
    assert only["predicted"] == pytest.approx(0.74)
    assert only["observed"] == {"mean": 2 / 3, "low": expected["low"], "high": expected["high"], "n": 3}
    assert report["expected_error"]["mean"] == pytest.approx(0.74 - 2 / 3)


def test_expected_error_weights_each_bin_by_its_pairs():
    claims = [(0.91, 1), (0.89, -1), (0.65, 1), (0.65, 1), *[(0.75, 1)] * 3, (0.75, -1)]
    report = calibration(np.array([sign * log_odds(claim) for claim, sign in claims]), seed=0)
    # bins: 0.8-0.9 holds one wrong of claim 0.89, 0.9-1 one right of 0.91, 0.6-0.7 two right of 0.65, 0.7-0.8 exact
    assert [round(one["from"], 1) for one in report["bins"]] == [0.6, 0.7, 0.8, 0.9]
    expected = (2 * 0.35 + 4 * 0.0 + 1 * 0.89 + 1 * 0.09) / 8
    assert report["expected_error"]["mean"] == pytest.approx(expected)
    assert report["expected_error"]["n"] == 8


def test_a_margin_of_zero_claims_one_half_and_counts_one_half():
    report = calibration(np.zeros(4), seed=0)
    assert report["bins"][0]["predicted"] == report["bins"][0]["observed"]["mean"] == 0.5
    assert report["expected_error"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 4}


def test_very_large_margins_fall_into_the_last_bin():
    report = calibration(np.array([1e6, -1e6]), seed=0)
    (last,) = report["bins"]
    assert (last["to"], last["predicted"], last["observed"]["mean"]) == (1.0, 1.0, 0.5)


def calibrated_margins(seed: int, pairs: int) -> np.ndarray:
    """Return margins of a model whose share of right choices equals its claims."""
    generator = np.random.default_rng(seed)
    confidence = np.abs(generator.normal(0, 1.5, pairs))
    wins = generator.random(pairs) < 1 / (1 + np.exp(-confidence))
    return np.where(wins, confidence, -confidence)


def test_the_expected_error_separates_calibrated_from_overconfident_models():
    models = [calibrated_margins(seed, 300) for seed in range(9)]
    calibrated = [calibration(margins, seed=0)["expected_error"] for margins in models]
    assert np.median([one["low"] for one in calibrated]) == 0.0  # although noise keeps every mean above 0
    assert min(one["mean"] for one in calibrated) > 0.01
    overconfident = [calibration(5 * margins, seed=0)["expected_error"] for margins in models]
    assert min(one["low"] for one in overconfident) > 0.05


def test_length_bias_is_the_correlation_of_differences_and_the_accuracy_by_longer_answer():
    margins, extra_tokens = np.array([2.0, 1.0, -1.0, 0.0]), np.array([4, -2, -2, 0])
    bias = length_bias(margins, extra_tokens, seed=0)
    # deviations 1.5, 0.5, -1.5, -0.5 and 4, -2, -2, 0: products 6 - 1 + 3 - 0 = 8, squares 5 and 24
    assert bias["correlation"]["mean"] == pytest.approx(8 / math.sqrt(5 * 24))
    assert bias["correlation"]["n"] == 4
    assert bias["accuracy_chosen_longer"]["mean"] == 1.0
    assert bias["accuracy_chosen_longer"]["n"] == 1
    assert bias["accuracy_chosen_shorter"]["mean"] == 0.5
    assert bias["accuracy_chosen_shorter"]["high"] == wilson(1, 2)["high"]


def test_the_interval_of_the_correlation_is_near_the_one_by_fisher():
    generator = np.random.default_rng(0)
    length = generator.normal(size=500)
    margins = 0.5 * length + math.sqrt(0.75) * generator.normal(size=500)
    found = length_bias(margins, length, seed=0)["correlation"]
    half_width = 1.96 / math.sqrt(500 - 3)  # of atanh(r), Fisher 1921
    assert found["low"] == pytest.approx(math.tanh(math.atanh(found["mean"]) - half_width), abs=0.02)
    assert found["high"] == pytest.approx(math.tanh(math.atanh(found["mean"]) + half_width), abs=0.02)


def test_a_score_or_length_without_spread_has_no_correlation():
    bias = length_bias(np.array([1.0, 1.0]), np.array([1, 2]), seed=0)
    assert bias["correlation"] is None
    assert bias["accuracy_chosen_shorter"] is None
    json.dumps(bias, allow_nan=False)


def test_resamples_without_spread_are_left_out_of_the_interval():
    found = length_bias(np.array([1.0, 2.0, 4.0]), np.array([1, 2, 3]), seed=0)["correlation"]
    assert -1 <= found["low"] <= found["mean"] <= found["high"] <= 1 + 1e-9
