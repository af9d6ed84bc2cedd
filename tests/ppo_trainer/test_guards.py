import dataclasses

import numpy as np
import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.ppo_trainer.guards import best, verdict

LIMITS = Guard(enabled=True, max_kl_nats=50, min_eos_rate=0.25, min_distinct_2=0.5, max_length_ratio=3)
OFF = dataclasses.replace(LIMITS, enabled=False)
NOISE = np.array([-0.1, -0.05, 0.05, 0.1] * 4)  # 16 prompts, mean 0


def measured(
    update: int,
    reward: float = 0.0,
    judge: float | None = None,
    utility: float | None = None,
    kl: float = 0.0,
    tokens: int = 10,
    ended: int = 16,
    distinct: float = 0.9,
) -> Measured:
    """Return figures of sixteen prompts with these means; `ended` of their answers ended."""
    return Measured(
        update=update,
        rewards=reward + NOISE,
        judge_rewards=None if judge is None else judge + NOISE[::-1],
        utilities=None if utility is None else utility + NOISE,
        kl_nats=kl + NOISE,
        kl_k1=kl + NOISE,
        kl_k3=kl + NOISE,
        answer_tokens=np.full(16, tokens),
        ended=np.arange(16) < ended,
        distinct_2=np.full(16, distinct),
    )


START = measured(0)


def test_a_policy_within_all_limits_trains_on():
    assert verdict([START], LIMITS) is None
    assert verdict([START, measured(4, reward=2, kl=49, tokens=30, ended=4, distinct=0.5)], LIMITS) is None


@pytest.mark.parametrize(
    ("newest", "reason"),
    [
        (measured(12, kl=61.25), "update 12: KL to SFT 61.2 nats per answer, over ppo.guard.max_kl_nats 50"),
        (measured(12, ended=3), "update 12: EOS rate 0.188, below ppo.guard.min_eos_rate 0.25"),
        (measured(12, distinct=0.4), "update 12: distinct bigrams 0.400, below ppo.guard.min_distinct_2 0.5"),
        (
            measured(12, tokens=31),
            "update 12: answers of 31.0 tokens, over ppo.guard.max_length_ratio 3 x the 10.0 of update 0",
        ),
        (measured(12, reward=np.nan), "update 12: mean reward nan: training has diverged"),
        (measured(12, kl=np.nan), "update 12: mean KL nan: training has diverged"),
    ],
)
def test_a_passed_limit_is_the_reason_to_stop_if_the_newest_measurement_passed_it(newest: Measured, reason: str):
    assert verdict([START, measured(8), newest], LIMITS) == reason
    assert verdict([START, newest, measured(16)], LIMITS) is None
    assert verdict([START, newest], OFF) is None


def test_a_limit_that_the_sft_model_already_passed_does_not_stop_ppo():
    poor = measured(0, ended=2, distinct=0.4)
    assert verdict([poor], LIMITS) is None
    assert verdict([poor, measured(4, ended=1, distinct=0.3)], LIMITS) is None


def test_reward_up_while_the_judge_falls_beyond_chance_is_over_optimisation():
    history = [measured(0, 0, 0), measured(4, 1, 1), measured(8, 1.2, 0.8), measured(12, 1.35, 0.59)]
    # paired judge differences to update 4: -0.41 at every prompt, so the interval has no width
    reason = "update 12: judge reward -0.41 [-0.41, -0.41] against update 4's while the reward rose by 0.35: "
    assert verdict(history, LIMITS) == reason + "the policy is exploiting the reward model"
    assert verdict(history[:2], LIMITS) is None


def test_a_fall_of_the_judge_within_chance_is_no_reason_to_stop():
    noisy = measured(8, 1.2, 1.0)
    falls = np.array([-1.0, 0.9] * 8)  # mean -0.05, standard error about 0.24
    noisy = dataclasses.replace(noisy, judge_rewards=1 + NOISE[::-1] + falls)
    assert verdict([measured(0, 0, 0), measured(4, 1, 1), noisy], LIMITS) is None


def test_a_judge_that_falls_with_the_reward_is_not_over_optimisation():
    assert verdict([measured(0, 0, 0), measured(4, 1, 1), measured(8, 0.9, 0.2)], LIMITS) is None


def test_the_best_update_has_the_highest_mean_of_best_by():
    history = [measured(0, 0, 0, 0), measured(4, 1, 3, 1), measured(8, 2, 2, 5), measured(12, 3, 2.99, 4)]
    assert best(history, "reward", OFF) == 12
    assert best(history, "judge", OFF) == 4
    assert best(history, "utility", OFF) == 8


def test_by_default_the_best_is_chosen_by_the_judge_or_without_one_by_the_reward():
    assert best([measured(0, 0, 0), measured(4, 1, 2), measured(8, 2, 1)], None, OFF) == 4
    assert best([measured(0, 0), measured(4, 1), measured(8, 2)], None, OFF) == 8


def test_the_earlier_of_equal_updates_is_the_best():
    assert best([measured(0, 0), measured(4, 1), measured(8, 1)], "reward", LIMITS) == 4


def test_an_update_over_a_limit_is_never_the_best():
    history = [measured(0, 0), measured(4, 1), measured(8, 9, kl=60)]
    assert best(history, "reward", LIMITS) == 4
    assert best(history, "reward", OFF) == 8


def test_the_sft_model_is_the_best_if_all_updates_are_worse_or_over_a_limit():
    assert best([measured(0, 0), measured(4, -1), measured(8, 3, kl=60)], None, LIMITS) == 0
    assert best([measured(0, np.nan)], None, LIMITS) == 0


@pytest.mark.parametrize("by", ["judge", "utility"])
def test_best_by_a_figure_that_was_not_measured_is_refused(by: str):
    with pytest.raises(UserError, match=rf"ppo\.heldout\.best_by: {by}, which was not measured"):
        best([START], by, LIMITS)
