import dataclasses
from typing import Any

import pytest

from gpt2_rlhf.config import compose, metrics
from gpt2_rlhf.config.settings import Guard, Ppo
from gpt2_rlhf.evidence import summary
from gpt2_rlhf.evidence.summary import collapse

GUARD = Guard(enabled=True, max_kl_nats=50, min_eos_rate=0.05, min_distinct_2=0.5, max_length_ratio=3)

PPO = dataclasses.replace(compose.load([]).settings.ppo, seeds=[0], guard=GUARD)
OVER_SEEDS = [one.key for one in metrics.OF_MODEL if one.over_seeds]
FIT = {"judge_fault": None}  # the judge, if any, is usable


def estimate(mean: float, half_width: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width, "n": 64}


def evaluation(
    reward_gain: float, utility_gain: float | None = None, judge_gain: float | None = None, **figures: float
) -> dict[str, Any]:
    ppo: dict[str, Any] = {name: estimate(figures.get(name, 0.9)) for name in OVER_SEEDS}
    if utility_gain is None:
        ppo["utility"] = None
    gains = {"reward": reward_gain, "utility": utility_gain, "judge_reward": judge_gain}
    gain = {name: None if mean is None else estimate(mean) for name, mean in gains.items()}
    return {"metrics": {"models": {"ppo": ppo}, "paired": {"ppo_minus_sft": gain}}}


def ppo(seed: int, stopped: str | None = None) -> dict[str, Any]:
    return {"seed": seed, "metrics": {"kept_update": 8, "stopped": stopped, "judge_fault": None}}


def spread(settings: Ppo, manifests: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    found = summary.spread(settings, manifests)
    assert found is not None
    return found


def of_stages(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, dict[str, Any]]]:
    shared: dict[str, dict[str, Any]] = {name: {"metrics": {}} for name in ("sft", "reward")}
    return [{**shared, "ppo": policy, "evaluate": evaluated} for policy, evaluated in runs]


def test_the_spread_is_the_mean_standard_deviation_and_range_over_seeds():
    runs = [(ppo(seed), evaluation(1.0, reward=reward)) for seed, reward in ((3, 1.0), (4, 2.0), (7, 6.0))]
    found = spread(PPO, of_stages(runs))
    # mean 3; deviations -2, -1, 3: sum of squares 14 over 3 - 1
    assert found["over_seeds"]["reward"] == pytest.approx({"mean": 3, "sd": 7**0.5, "min": 1, "max": 6, "n": 3})
    assert found["over_seeds"]["utility"] is None
    assert [one["seed"] for one in found["by_seed"]] == [3, 4, 7]
    assert found["collapsed"] == found["stopped"] == []


def test_settings_without_seeds_have_no_spread():
    settings = dataclasses.replace(PPO, seeds=None)
    assert summary.spread(settings, of_stages([(ppo(0), evaluation(1.0))])) is None


def test_one_seed_has_no_standard_deviation():
    assert spread(PPO, of_stages([(ppo(0), evaluation(1.0, reward=2.0))]))["over_seeds"]["reward"]["sd"] is None


def test_a_policy_worse_than_sft_beyond_its_interval_has_collapsed():
    assert collapse({"ppo": FIT, "evaluation": evaluation(-0.05)["metrics"]}, GUARD) is None  # up to +0.05
    assert (
        collapse({"ppo": FIT, "evaluation": evaluation(-0.5)["metrics"]}, GUARD)
        == "reward -0.50 [-0.60, -0.40] against SFT"
    )


def test_the_utility_decides_where_it_is_known():
    assert collapse({"ppo": FIT, "evaluation": evaluation(-0.5, 0.5)["metrics"]}, GUARD) is None
    assert (
        collapse({"ppo": FIT, "evaluation": evaluation(0.5, -0.5)["metrics"]}, GUARD)
        == "utility -0.50 [-0.60, -0.40] against SFT"
    )


def test_the_judge_decides_where_the_utility_is_unknown_unless_it_is_no_better_than_chance():
    fooled = evaluation(0.5, judge_gain=-0.5)["metrics"]
    assert collapse({"ppo": FIT, "evaluation": fooled}, GUARD) == "judge's reward -0.50 [-0.60, -0.40] against SFT"
    assert collapse({"ppo": {"judge_fault": "like chance"}, "evaluation": fooled}, GUARD) is None
    assert collapse({"ppo": FIT, "evaluation": evaluation(0.5, 0.5, judge_gain=-0.5)["metrics"]}, GUARD) is None


def test_a_policy_that_never_ends_or_repeats_itself_has_collapsed():
    assert collapse({"ppo": FIT, "evaluation": evaluation(1.0, eos_rate=0.04)["metrics"]}, GUARD) == "EOS rate 0.040"
    assert (
        collapse({"ppo": FIT, "evaluation": evaluation(1.0, distinct_2=0.4)["metrics"]}, GUARD)
        == "distinct bigrams 0.400"
    )


def test_seeds_that_collapsed_or_were_stopped_are_named():
    runs = [(ppo(0), evaluation(1.0)), (ppo(1), evaluation(-1.0)), (ppo(2, "update 8: KL"), evaluation(1.0))]
    found = spread(PPO, of_stages(runs))
    assert found["collapsed"] == [1]
    assert found["stopped"] == [2]
