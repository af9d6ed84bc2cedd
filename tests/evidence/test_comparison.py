import json
import math
from dataclasses import replace

import numpy as np
import pytest

from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence.comparison import (
    best_of_kl_bound_nats,
    compare,
    paired_figures,
    usable_measures,
)
from gpt2_rlhf.evidence.measured import Measured


def measured(
    rewards: list[float],
    judge_rewards: list[float] | None = None,
    utilities: list[float] | None = None,
    answer_tokens: list[int] | None = None,
    nll: list[float] | None = None,
) -> Measured:
    count = len(rewards)
    return Measured(
        reward=np.array(rewards),
        judge_reward=None if judge_rewards is None else np.array(judge_rewards),
        utility=None if utilities is None else np.array(utilities),
        tokens=np.array([10] * count if answer_tokens is None else answer_tokens),
        ended=np.ones(count),
        distinct_2=np.ones(count),
        kl_k1=np.zeros(count),
        chosen_nll_nats=None if nll is None else np.array(nll),
        chosen_tokens=None if nll is None else np.array([2] * count),
    )


def means(figures: dict) -> dict[str, float]:
    return {key: value["mean"] for key, value in figures.items() if isinstance(value, dict) and "mean" in value}


def test_win_rates_are_paired_by_prompt_and_count_a_tie_as_one_half():
    by_model = {"base": measured([1, 1, 1, 5]), "sft": measured([2, 1, 3, 1]), "ppo": measured([9] * 4)}
    figures = compare(by_model, {}, 1.0, seed=0)["models"]
    assert figures["sft"]["win_rate_vs_base"]["mean"] == 2.5 / 4  # won, tied, won, lost
    assert figures["base"]["win_rate_vs_sft"]["mean"] == 1.5 / 4
    # all won: Wilson's lower end is n / (n + 1.96^2)
    assert figures["ppo"]["win_rate_vs_sft"] == pytest.approx(
        {"mean": 1.0, "low": 4 / 7.8415, "high": 1.0, "n": 4}, rel=1e-4
    )
    assert figures["base"]["win_rate_vs_base"] is None
    assert figures["sft"]["win_rate_vs_sft"] is None


def test_win_rates_are_by_reward_model_judge_and_utility():
    by_model = {
        "base": measured([0, 0, 0, 0], [3, 3, 0, 0], [1, 1, 1, 1]),
        "sft": measured([1, 1, 1, 1], [2, 2, 2, 1], [0, 1, 2, 3]),
        "ppo": measured([2, 2, 2, 0], [1, 1, 2, 3], [0, 0, 2, 2]),
    }
    figures = compare(by_model, {}, 1.0, seed=0)["models"]
    keys = [f"win_rate_vs_{rival}{by}" for rival in ("sft", "base") for by in ("", "_by_judge", "_by_utility")]
    assert [figures["ppo"][key]["mean"] for key in keys] == [3 / 4, 1.5 / 4, 1 / 4, 3.5 / 4, 2 / 4, 2 / 4]
    assert [figures["sft"][key] for key in keys[:3]] == [None] * 3
    assert figures["ppo"]["win_rate_vs_sft_by_judge"]["n"] == 4


def test_a_model_that_gives_the_same_answers_as_sft_ties_with_it_by_every_measure():
    one, equal = (measured([1, 2], [3, 4], [5, 6]) for _ in range(2))
    figures = compare({"base": one, "sft": one, "ppo": equal}, {}, 1.0, seed=0)["models"]["ppo"]
    for by in ("", "_by_judge", "_by_utility"):
        assert figures[f"win_rate_vs_sft{by}"]["mean"] == 1 / 2


def test_outcomes_are_shares_of_prompts_for_reward_model_and_judge():
    later = measured([2, 1, 3, 1, 0], judge_rewards=[0, 0, 0, 0, 1])
    earlier = measured([1, 1, 1, 5, 1], judge_rewards=[1, 1, 0, 0, 0])
    pair = paired_figures(later, earlier, 1.0, seed=0)
    assert means(pair["by_reward"]) == {"win": 2 / 5, "tie": 1 / 5, "loss": 2 / 5}
    assert means(pair["by_judge"]) == {"win": 1 / 5, "tie": 2 / 5, "loss": 2 / 5}
    assert pair["by_reward"]["win"]["low"] < 2 / 5 < pair["by_reward"]["win"]["high"]
    assert pair["judge_reward"]["mean"] == pytest.approx(-1 / 5)


def test_the_reward_difference_is_also_given_in_standard_deviations_of_the_scores():
    pair = paired_figures(measured([3, 4, 8]), measured([1, 2, 6]), 4.0, seed=0)
    assert pair["reward"]["mean"] == 2
    assert pair["reward_sd"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 3}
    assert paired_figures(measured([1]), measured([1]), 0.0, seed=0)["reward_sd"] is None


def test_the_mean_may_rise_while_most_prompts_get_worse():
    pair = paired_figures(measured([10, -1, -1, -1]), measured([0, 0, 0, 0]), 1.0, seed=0)
    assert pair["reward"]["mean"] == 7 / 4
    assert pair["by_reward"]["loss"]["mean"] == 3 / 4


@pytest.mark.parametrize(
    ("later_tokens", "earlier_tokens", "is_matched"),
    [(10, 12, True), (10, 13, False), (0, 2, True), (36, 40, True), (40, 36, True), (35, 40, False), (95, 105, True)],
)
def test_lengths_match_within_two_tokens_or_a_tenth_of_the_longer(
    later_tokens: int, earlier_tokens: int, is_matched: bool
):
    later, earlier = measured([1], answer_tokens=[later_tokens]), measured([0], answer_tokens=[earlier_tokens])
    assert (paired_figures(later, earlier, 1.0, seed=0)["length_matched"] is not None) == is_matched


def test_length_matched_outcomes_count_only_the_prompts_that_match():
    later = measured([1, 1, 1, -1], answer_tokens=[10, 90, 10, 11])
    earlier = measured([0, 0, 1, 0], answer_tokens=[10, 10, 11, 10])
    matched = paired_figures(later, earlier, 1.0, seed=0)["length_matched"]
    assert matched["pairs"] == matched["win"]["n"] == 3  # the win by 80 tokens more is left out
    assert means(matched) == {"win": 1 / 3, "tie": 1 / 3, "loss": 1 / 3}


def test_paired_difference_has_a_smaller_interval_than_the_means():
    shared = np.random.default_rng(0).normal(0, 5, 200)
    by_model = {
        "base": measured(list(shared), utilities=list(shared)),
        "sft": measured(list(shared + 1), utilities=list(shared + 2)),
        "ppo": measured(list(shared + 1.5), utilities=list(shared + 1)),
    }
    metrics = compare(by_model, {}, 1.0, seed=0)
    found = {name: (pair["reward"]["mean"], pair["utility"]["mean"]) for name, pair in metrics["paired"].items()}
    assert found == {
        "sft_minus_base": pytest.approx((1, 2)),
        "ppo_minus_sft": pytest.approx((0.5, -1)),
        "ppo_minus_base": pytest.approx((1.5, 1)),
    }
    gain = metrics["paired"]["sft_minus_base"]["reward"]
    reward = metrics["models"]["sft"]["reward"]
    assert gain["high"] - gain["low"] < 0.01 < reward["high"] - reward["low"]


def test_ppo_is_compared_with_best_of_n_where_best_of_n_was_measured():
    by_model = {name: measured([place]) for place, name in enumerate(("base", "sft", "ppo", "best_of_n"))}
    paired = compare(by_model, {}, 1.0, seed=0)["paired"]
    assert list(paired) == ["sft_minus_base", "ppo_minus_sft", "ppo_minus_base", "ppo_minus_best_of_n"]
    assert paired["ppo_minus_best_of_n"]["reward"]["mean"] == -1


def test_perplexity_is_per_token_over_all_rows():
    # 2 tokens a row: (1 + 3) nats / 4 tokens
    one = measured([0, 0], nll=[1, 3])
    figures = compare(dict.fromkeys(("base", "sft", "ppo"), one), {}, 1.0, seed=0)["models"]["base"]
    assert figures["chosen_perplexity"]["mean"] == pytest.approx(math.e)
    assert figures["chosen_perplexity"]["low"] == pytest.approx(math.exp(0.5))  # both resampled rows are the first
    assert figures["chosen_perplexity"]["n"] == 2


def test_figures_of_a_subset_are_those_of_its_prompts():
    by_model = {"base": measured([0, 0, 0]), "sft": measured([1, 2, 6]), "ppo": measured([2, 2, 4])}
    found = compare(by_model, {"few": np.array([True, False, True])}, 2.0, seed=0)["by_subset"]["few"]
    assert found["prompts"] == 2
    assert found["models"]["sft"]["reward"]["mean"] == 3.5
    assert found["ppo_minus_sft"]["reward"]["mean"] == -0.5
    assert found["ppo_minus_sft"]["reward_sd"]["mean"] == -0.25
    assert found["ppo_minus_sft"]["by_reward"]["loss"] == {"mean": 0.5, "low": 0.0, "high": 1.0, "n": 2}


def test_refusals_are_shares_of_the_answers_and_their_difference_is_paired():
    one = measured([0, 0, 0, 0])
    refused = {"base": [1, 0, 0, 0], "sft": [1, 1, 0, 0], "ppo": [1, 1, 1, 0]}
    by_model = {name: replace(one, refused=np.array(given, dtype=bool)) for name, given in refused.items()}
    found = compare(by_model, {"few": np.array([False, True, True, False])}, 1.0, seed=0)
    assert [found["models"][name]["refusal_rate"]["mean"] for name in refused] == [1 / 4, 2 / 4, 3 / 4]
    assert found["paired"]["ppo_minus_base"]["refusal_rate"]["mean"] == 2 / 4
    few = found["by_subset"]["few"]
    assert few["models"]["sft"]["refusal_rate"]["mean"] == few["ppo_minus_sft"]["refusal_rate"]["mean"] == 1 / 2
    assert few["models"]["ppo"]["toxic_rate"] is few["ppo_minus_sft"]["toxic_rate"] is None


def test_unknown_figures_are_null_and_the_metrics_are_json():
    one = measured([1.0, 2.0])
    metrics = compare(dict.fromkeys(("base", "sft", "ppo"), one), {}, 1.0, seed=0)
    json.dumps(metrics, allow_nan=False)
    assert metrics["models"]["ppo"]["judge_reward"] is None
    assert metrics["models"]["ppo"]["utility"] is None
    assert metrics["models"]["ppo"]["chosen_perplexity"] is None
    assert metrics["models"]["ppo"]["win_rate_vs_sft_by_judge"] is None
    assert metrics["models"]["ppo"]["win_rate_vs_base_by_utility"] is None
    pair = metrics["paired"]["ppo_minus_sft"]
    assert pair["judge_reward"] is pair["utility"] is pair["by_judge"] is None


@pytest.mark.parametrize(("n", "nats"), [(1, 0.0), (2, 0.1931), (4, 0.6363)])
def test_the_kl_bound_of_best_of_n_is_log_n_less_n_minus_1_over_n(n: int, nats: float):
    # log 2 = 0.6931, less 1/2; log 4 = 1.3863, less 3/4
    assert best_of_kl_bound_nats(n) == pytest.approx(nats, abs=5e-5)


def test_measures_are_the_truth_then_a_usable_judge_then_the_reward():
    def names(known, judge_fault):
        gain = {one.key: {"mean": 1.0} if one in known else None for one in metrics.MEASURES}
        found = {"evaluation": {"paired": {"ppo_minus_sft": gain}}, "ppo": {"judge_fault": judge_fault}}
        return [one.key for one in usable_measures(found)]

    assert names(metrics.MEASURES, None) == ["utility", "judge_reward", "reward"]
    assert names(metrics.MEASURES[1:], None) == ["judge_reward", "reward"]
    assert names(metrics.MEASURES[1:], "no better than chance") == ["reward"]
