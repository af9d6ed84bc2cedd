import copy
import re
from typing import Any

import pytest

from gpt2_rlhf.evidence.verdict import verdict

ROSE = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 64}
FLAT = {"mean": 0.1, "low": -0.25, "high": 0.45, "n": 64}
FELL = {"mean": -0.5, "low": -0.75, "high": -0.25, "n": 64}
LENGTH = {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 64}
PPO = {"kept_update": 24, "updates": 24, "stopped": None, "forced": [], "judge_fault": None}


def summary(reward: Any, utility: Any = None, judge: Any = None, **ppo: Any) -> dict[str, Any]:
    gain = {"reward": reward, "utility": utility, "judge_reward": judge}
    sft = {"reward": {"mean": 1.5}, "utility": {"mean": 1.48}, "judge_reward": {"mean": 0.25}, "answer_tokens": LENGTH}
    after = {name: {"mean": sft[name]["mean"] + one["mean"]} for name, one in gain.items() if one is not None}
    return {
        "seed": 3,
        "seeds": None,
        "ppo": {**PPO, **ppo},
        "evaluation": {
            "prompts": 64,
            "models": {"sft": sft, "ppo": {"answer_tokens": LENGTH, **after}},
            "paired": {"ppo_minus_sft": gain},
        },
    }


@pytest.mark.parametrize(
    ("reward", "utility", "judge", "finding"),
    [
        (ROSE, ROSE, ROSE, "PPO's answers are better: utility rose from 1.48 to 1.98"),
        (FLAT, ROSE, None, "PPO's answers are better: utility rose from 1.48 to 1.98, though no rise of its reward "
                           "shows"),
        (ROSE, None, ROSE, "PPO's answers are better: judge's reward rose from 0.25 to 0.75"),
        (ROSE, FELL, ROSE, "PPO's answers are worse although its reward rose from 1.50 to 2.00: PPO exploited the "
                           "reward model, and utility fell from 1.48 to 0.98"),
        (ROSE, None, FELL, "PPO's answers are worse although its reward rose from 1.50 to 2.00: PPO exploited the "
                           "reward model, and judge's reward fell from 0.25 to -0.25"),
        (ROSE, FLAT, ROSE, "PPO's reward rose from 1.50 to 2.00, but no change of its utility shows on 64 prompts: PPO "
                           "may have exploited the reward model"),
        (FELL, FELL, None, "PPO's answers are worse: utility fell from 1.48 to 0.98"),
        (FELL, FLAT, None, "PPO's reward fell from 1.50 to 1.00, but no change of its utility shows on 64 prompts"),
        (FLAT, FLAT, FLAT, "No difference between PPO and SFT shows on 64 prompts"),
        (ROSE, None, None, "PPO's reward rose from 1.50 to 2.00, which alone does not show better answers"),
        (FLAT, None, None, "No difference between PPO and SFT shows on 64 prompts"),
        (FELL, None, None, "PPO's reward fell from 1.50 to 1.00"),
    ],
)  # fmt: skip
def test_the_finding_follows_from_the_intervals(reward, utility, judge, finding):
    sentence = verdict(summary(reward, utility, judge))
    assert sentence.startswith(f"{finding}; PPO - SFT on the same 64 held-out prompts: ")
    assert sentence.count(".") > 1  # figures
    assert not re.search(r"\.\s", sentence)  # one sentence
    assert sentence.endswith("; one training seed (3).")


def test_a_change_of_length_is_stated_only_where_the_intervals_of_the_means_do_not_overlap():
    changed = summary(ROSE, ROSE)
    for mean, clause in ((29.2, "; PPO's answers are 46 % longer;"), (10.0, "; PPO's answers are 50 % shorter;")):
        length = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 64}
        changed["evaluation"]["models"]["ppo"]["answer_tokens"] = length
        assert clause in verdict(changed)
    changed["evaluation"]["models"]["ppo"]["answer_tokens"] = {"mean": 21.5, "low": 20.5, "high": 22.5, "n": 64}
    assert "PPO's answers are 8 %" not in verdict(changed)


def test_the_finding_states_its_figures_with_their_intervals():
    assert "utility 0.10 [-0.25, 0.45], judge's reward -0.50 [-0.75, -0.25], reward 0.50 [0.25, 0.75];" in verdict(
        summary(ROSE, FLAT, FELL)
    )


def test_win_rates_come_before_the_differences_and_first_the_one_that_ppo_was_not_trained_on():
    def share(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 64}

    given = summary(ROSE, ROSE, ROSE)
    ppo = given["evaluation"]["models"]["ppo"]
    ppo |= {"win_rate_vs_sft": share(0.875), "win_rate_vs_sft_by_judge": share(0.85)}
    ppo["win_rate_vs_sft_by_utility"] = share(0.7)
    judge, reward = "85.0 % [80.0, 90.0] by judge", "87.5 % [82.5, 92.5] by reward; PPO - SFT"
    assert f"; PPO wins against SFT: 70.0 % [65.0, 75.0] by utility, {judge}, {reward}" in verdict(given)
    ppo["win_rate_vs_sft_by_utility"] = None
    assert f"; PPO wins against SFT: {judge}, {reward}" in verdict(given)
    given["ppo"]["judge_fault"] = "the judge is right on 50 %"
    assert f"; PPO wins against SFT: {reward}" in verdict(given)


def test_what_chose_the_policy_is_named():
    best = summary(ROSE, None, ROSE, kept_update=16, chosen_by="judge")
    assert (
        "; the policy of update 16 of 24 was handed on, chosen by the judge, whose figures are optimistic;"
        in verdict(best)
    )
    assert "; the policy was chosen by the judge, whose figures are optimistic;" in verdict(
        summary(ROSE, None, ROSE, chosen_by="judge")
    )
    stopped = {"stopped": "update 8: KL", "updates": 8}
    assert "the policy of update 4 was handed on, chosen by the judge, whose figures are optimistic;" in verdict(
        summary(ROSE, ROSE, kept_update=4, chosen_by="judge", **stopped)
    )


def test_a_judge_no_better_than_chance_supports_no_claim():
    sentence = verdict(summary(ROSE, None, ROSE, judge_fault="the judge is right on 50 %"))
    assert sentence.startswith("PPO's reward rose from 1.50 to 2.00, which alone does not show better answers")
    assert "with neither a utility nor a usable judge" in sentence
    assert "judge's reward" not in sentence


def test_a_guard_that_stopped_ppo_is_named_with_the_update_handed_on():
    stopped = {"stopped": "update 8: KL to SFT 31.0 nats per answer", "updates": 8}
    sentence = verdict(summary(ROSE, ROSE, kept_update=4, **stopped))
    assert (
        "; the guard stopped PPO (update 8: KL to SFT 31.0 nats per answer) and the policy of update 4 was" in sentence
    )
    unchanged = verdict(summary(FLAT, FLAT, kept_update=0, **stopped))
    assert unchanged.startswith("PPO handed on the SFT model unchanged; the guard stopped PPO")


def test_an_earlier_policy_that_was_best_is_named():
    assert "; the policy of update 16 of 24 was handed on;" in verdict(summary(ROSE, ROSE, kept_update=16))


def test_a_gate_passed_by_force_and_collapsed_seeds_are_named():
    forced = summary(ROSE, ROSE, forced=["reward: no better than chance"])
    forced["seeds"] = {"by_seed": [{}, {}, {}], "collapsed": [2]}
    assert verdict(forced).endswith(
        "; PPO was trained although a gate failed (force=true); 1 of 3 training seeds collapsed."
    )


def test_a_verdict_leaves_its_summary_as_it_was():
    given = summary(ROSE, ROSE)
    before = copy.deepcopy(given)
    verdict(given)
    assert given == before
