import copy
import re
from typing import Any

import pytest

from gpt2_rlhf.evidence.verdict import verdict

ROSE = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 64}
FLAT = {"mean": 0.1, "low": -0.25, "high": 0.45, "n": 64}
FELL = {"mean": -0.5, "low": -0.75, "high": -0.25, "n": 64}
PPO = {"kept_update": 24, "updates": 24, "stopped": None, "forced": [], "judge_fault": None}


def summary(reward: Any, utility: Any = None, judge: Any = None, **ppo: Any) -> dict[str, Any]:
    gain = {"reward": reward, "utility": utility, "judge_reward": judge}
    return {
        "seed": 3,
        "seeds": None,
        "ppo": {**PPO, **ppo},
        "evaluation": {"prompts": 64, "paired": {"ppo_minus_sft": gain}},
    }


@pytest.mark.parametrize(
    ("reward", "utility", "judge", "finding"),
    [
        (ROSE, ROSE, ROSE, "PPO answers better than SFT by utility"),
        (FLAT, ROSE, None, "PPO answers better than SFT by utility, though its reward did not rise"),
        (ROSE, None, ROSE, "PPO answers better than SFT by judge's reward"),
        (ROSE, FELL, ROSE, "The reward model was fooled: PPO's reward rose and its utility fell"),
        (ROSE, None, FELL, "The reward model was fooled: PPO's reward rose and its judge's reward fell"),
        (ROSE, FLAT, ROSE, "PPO's reward rose and its utility did not, as far as 64 prompts can show: the reward model "
                           "may be fooled"),
        (FELL, FELL, None, "PPO answers worse: its utility fell"),
        (FELL, FLAT, None, "PPO's reward fell, without a change in utility that 64 prompts can show"),
        (FLAT, FLAT, FLAT, "No difference between PPO and SFT that 64 prompts can show"),
        (ROSE, None, None, "PPO's reward rose, which alone does not make its answers better"),
        (FLAT, None, None, "No difference between PPO and SFT that 64 prompts can show"),
        (FELL, None, None, "PPO's reward fell"),
    ],
)  # fmt: skip
def test_the_finding_follows_from_the_intervals(reward, utility, judge, finding):
    said = verdict(summary(reward, utility, judge))
    assert said.startswith(f"{finding}: on the same 64 held-out prompts, PPO less SFT, ")
    assert said.count(".") > 1  # figures
    assert not re.search(r"\.\s", said)  # one sentence
    assert said.endswith("; one training seed (3).")


def test_the_finding_states_its_figures_with_their_intervals():
    assert "utility 0.10 [-0.25, 0.45], reward 0.50 [0.25, 0.75], judge's reward -0.50 [-0.75, -0.25];" in verdict(
        summary(ROSE, FLAT, FELL)
    )


def test_a_judge_no_better_than_chance_is_no_witness():
    said = verdict(summary(ROSE, None, ROSE, judge_fault="the judge is right on 50 %"))
    assert said.startswith("PPO's reward rose, which alone does not make its answers better")
    assert "neither utility nor a fit judge was there to ask" in said
    assert "judge's reward" not in said


def test_a_guard_that_stopped_ppo_is_named_with_the_update_handed_on():
    stopped = {"stopped": "update 8: KL to SFT 31.0 nats per answer", "updates": 8}
    said = verdict(summary(ROSE, ROSE, kept_update=4, **stopped))
    assert "; the guard stopped PPO (update 8: KL to SFT 31.0 nats per answer) and the policy of update 4 was" in said
    unchanged = verdict(summary(FLAT, FLAT, kept_update=0, **stopped))
    assert unchanged.startswith("PPO handed on the SFT model unchanged; the guard stopped PPO")


def test_an_earlier_policy_that_was_best_is_named():
    assert "; the policy of update 16 of 24 was handed on;" in verdict(summary(ROSE, ROSE, kept_update=16))


def test_a_gate_passed_by_force_and_collapsed_seeds_are_named():
    forced = summary(ROSE, ROSE, forced=["reward: no better than chance"])
    forced["seeds"] = {"by_seed": [{}, {}, {}], "collapsed": [2]}
    assert verdict(forced).endswith("; PPO was trained past a gate by force; 1 of 3 training seeds collapsed.")


def test_a_verdict_leaves_its_summary_as_it_was():
    given = summary(ROSE, ROSE)
    before = copy.deepcopy(given)
    verdict(given)
    assert given == before
