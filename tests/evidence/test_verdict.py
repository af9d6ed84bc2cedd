import copy
from typing import Any

import pytest

from gpt2_rlhf.evidence.verdict import notes, verdict

ROSE = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 64}
FLAT = {"mean": 0.1, "low": -0.25, "high": 0.45, "n": 64}
FELL = {"mean": -0.5, "low": -0.75, "high": -0.25, "n": 64}
LENGTH = {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 64}
PPO = {"kept_update": 24, "updates": 24, "stopped": None, "forced": [], "judge_fault": None}
UP, SAME, DOWN = (
    "(difference 0.50 [0.25, 0.75])",
    "(difference 0.10 [-0.25, 0.45])",
    "(difference -0.50 [-0.75, -0.25])",
)
EXPLOITED = "The reward rose from 1.50 to 2.00: PPO exploited the reward model."
BETTER = f"PPO's answers are better: utility rose from 1.48 to 1.98 {UP}."


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
            "best_of": 4,
            "models": {"sft": sft, "ppo": {"answer_tokens": LENGTH, **after}},
            "paired": {"ppo_minus_sft": gain},
        },
    }


def with_length(given: dict[str, Any], mean: float) -> dict[str, Any]:
    length = {"mean": mean, "low": mean - 1, "high": mean + 1, "n": 64}
    given["evaluation"]["models"]["ppo"]["answer_tokens"] = length
    return given


@pytest.mark.parametrize(
    ("reward", "utility", "judge", "sentences"),
    [
        (ROSE, ROSE, ROSE, BETTER),
        (FLAT, ROSE, None, f"{BETTER} No rise of the reward shows."),
        (ROSE, None, ROSE, f"PPO's answers are better: the judge's reward rose from 0.25 to 0.75 {UP}."),
        (ROSE, FELL, ROSE, f"PPO's answers are worse: utility fell from 1.48 to 0.98 {DOWN}. {EXPLOITED}"),
        (ROSE, None, FELL, f"PPO's answers are worse: the judge's reward fell from 0.25 to -0.25 {DOWN}. {EXPLOITED}"),
        (ROSE, FLAT, ROSE, f"No change of utility shows on 64 prompts {SAME}. The reward rose from 1.50 to 2.00: PPO "
                           "may have exploited the reward model."),
        (FELL, FELL, None, f"PPO's answers are worse: utility fell from 1.48 to 0.98 {DOWN}."),
        (FELL, FLAT, None, f"No change of utility shows on 64 prompts {SAME}. The reward fell from 1.50 to 1.00."),
        (FLAT, FLAT, FLAT, f"No difference between PPO and SFT shows on 64 prompts: utility {SAME}."),
        (ROSE, None, None, f"PPO's reward rose from 1.50 to 2.00 {UP}. That alone does not show better answers: the "
                           "run has neither a utility nor a usable judge."),
        (FLAT, None, None, f"No difference between PPO and SFT shows on 64 prompts: reward {SAME}."),
        (FELL, None, None, f"PPO's reward fell from 1.50 to 1.00 {DOWN}."),
    ],
)  # fmt: skip
def test_the_finding_follows_from_the_intervals(reward, utility, judge, sentences):
    assert verdict(summary(reward, utility, judge)) == sentences


def test_a_change_of_length_is_stated_only_where_the_intervals_of_the_means_do_not_overlap():
    assert verdict(with_length(summary(ROSE, ROSE), 29.2)) == f"{BETTER} They are 46 % longer."
    assert verdict(with_length(summary(ROSE, ROSE), 10.0)) == f"{BETTER} They are 50 % shorter."
    assert verdict(with_length(summary(ROSE, ROSE), 21.5)) == BETTER
    flat = with_length(summary(FLAT, FLAT), 10.0)
    assert verdict(flat).endswith("]). PPO's answers are 50 % shorter.")


def test_best_of_n_is_told_by_the_measure_of_the_finding():
    given = summary(ROSE, ROSE)
    given["evaluation"]["models"]["best_of_n"] = {"reward": {"mean": 9.0}, "utility": {"mean": 2.54}}
    best = "best of 4 SFT answers, without training, reaches utility 2.54."
    assert verdict(given) == f"{BETTER} The {best}"
    assert verdict(with_length(given, 29.2)) == f"{BETTER} They are 46 % longer; the {best}"


def test_what_does_not_fit_in_two_sentences_is_the_first_note():
    worse = with_length(summary(ROSE, FELL), 29.2)
    assert verdict(worse).endswith(EXPLOITED)
    assert notes(worse)[0] == "They are 46 % longer."


def test_the_notes_have_the_difference_of_every_usable_measure_with_its_interval():
    line = "PPO - SFT on the same 64 held-out prompts: "
    measures = "utility 0.10 [-0.25, 0.45], the judge's reward -0.50 [-0.75, -0.25], reward 0.50 [0.25, 0.75]."
    assert line + measures in notes(summary(ROSE, FLAT, FELL))


def test_win_rates_come_first_by_the_one_that_ppo_was_not_trained_on():
    def share(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 64}

    given = summary(ROSE, ROSE, ROSE)
    ppo = given["evaluation"]["models"]["ppo"]
    ppo |= {"win_rate_vs_sft": share(0.875), "win_rate_vs_sft_by_judge": share(0.85)}
    ppo["win_rate_vs_sft_by_utility"] = share(0.7)
    judge, reward = "85.0 % [80.0, 90.0] by judge, ", "87.5 % [82.5, 92.5] by reward."
    assert f"PPO wins against SFT: 70.0 % [65.0, 75.0] by utility, {judge}{reward}" in notes(given)
    ppo["win_rate_vs_sft_by_utility"] = None
    assert f"PPO wins against SFT: {judge}{reward}" in notes(given)
    given["ppo"]["judge_fault"] = "the judge is right on 50 %"
    assert f"PPO wins against SFT: {reward}" in notes(given)


def test_what_chose_the_policy_is_named():
    best = summary(ROSE, None, ROSE, kept_update=16, chosen_by="judge")
    chosen = "The judge also chose the policy that was handed on, so its figures for PPO are optimistic."
    assert notes(best)[-3:-1] == ["The policy of update 16 of 24 was handed on.", chosen]
    assert chosen in notes(summary(ROSE, None, ROSE, chosen_by="judge"))
    assert not [note for note in notes(summary(ROSE, None, ROSE)) if "handed on" in note]


def test_a_judge_no_better_than_chance_supports_no_claim():
    given = summary(ROSE, None, ROSE, judge_fault="the judge is right on 50 %")
    assert verdict(given) == verdict(summary(ROSE))
    assert not [note for note in notes(given) if "judge's reward" in note]


def test_a_guard_that_stopped_ppo_is_the_first_note_with_what_was_handed_on():
    stopped = {"stopped": "update 8: KL to SFT 31.0 nats per answer", "updates": 8}
    why = "The guard stopped PPO: update 8: KL to SFT 31.0 nats per answer."
    assert notes(summary(ROSE, ROSE, kept_update=4, **stopped))[0] == f"{why} The policy of update 4 was handed on."
    unchanged = summary(FLAT, FLAT, kept_update=0, **stopped)
    assert verdict(unchanged) == "PPO handed on the SFT model unchanged."
    assert notes(unchanged)[0] == f"{why} The SFT model was handed on."


def test_a_gate_passed_by_force_and_collapsed_seeds_are_named():
    forced = summary(ROSE, ROSE, forced=["reward: no better than chance; give it more pairs"])
    fine = {"collapsed": None, "stopped": None}
    forced["seeds"] = {
        "by_seed": [{**fine, "seed": 0}, {**fine, "seed": 2, "collapsed": "EOS rate 0.01"}],
        "collapsed": [2],
    }
    assert notes(forced)[0] == "A gate failed, and force=true continued the run: no better than chance."
    assert notes(forced)[-1] == "1 of 2 seeds collapsed. Seed 2 collapsed: EOS rate 0.01."
    assert notes(summary(ROSE, ROSE))[-1] == "One training seed (3) was run; another may end differently."


def test_a_verdict_leaves_its_summary_as_it_was():
    given = summary(ROSE, ROSE)
    before = copy.deepcopy(given)
    verdict(given)
    notes(given)
    assert given == before
