import dataclasses

import numpy as np
import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.ppo_trainer.guards import best, best_by, judge_falls, verdicts

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
        reward=reward + NOISE,
        judge_reward=None if judge is None else judge + NOISE[::-1],
        utility=None if utility is None else utility + NOISE,
        kl_nats=kl + NOISE,
        kl_k1=kl + NOISE,
        kl_k3=kl + NOISE,
        tokens=np.full(16, tokens),
        ended=np.arange(16) < ended,
        distinct_2=np.full(16, distinct),
    )


START = measured(0)


def verdict(history: list[Measured], guard: Guard) -> str | None:
    return verdicts(history, guard)[-1]


def history_of(judge_rewards: np.ndarray) -> list[Measured]:
    """Return a run whose reward rises from measurement to measurement; judge_rewards: (measurements, prompts)."""
    ones = np.ones(judge_rewards.shape[1])
    return [
        Measured(place * ones, judged, None, ones, ones == 1, ones, ones, ones, ones, update=4 * place)
        for place, judged in enumerate(judge_rewards)
    ]


def share_stopped(judge_rewards: np.ndarray) -> float:
    """Return the share of runs that are stopped at any measurement; judge_rewards: (runs, measurements, prompts)."""
    return float(np.mean([judge_falls(run)[1].any() for run in judge_rewards]))


def simulated(kind: str, runs: int, looks: int) -> np.ndarray:
    """Return a judge's rewards of SD 1 and constant mean on 64 prompts, shape (runs, looks, 64).

    independent: at each prompt, the measurements of a run have independent noise. prompts: they correlate by 0.7, since
    some prompts get higher rewards than others. drifting: neighbours in time correlate by 0.9.
    """
    generator = np.random.default_rng(7)
    noise = generator.standard_normal((runs, looks, 64))
    if kind == "prompts":
        return np.sqrt(0.7) * generator.standard_normal((runs, 1, 64)) + np.sqrt(0.3) * noise
    if kind == "drifting":
        for place in range(1, looks):
            noise[:, place] = 0.9 * noise[:, place - 1] + np.sqrt(1 - 0.9**2) * noise[:, place]
    return noise


KINDS = ("independent", "prompts", "drifting")
RUNS = {6: 800, 24: 600, 117: 300}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("looks", RUNS)
def test_a_judge_that_does_not_move_stops_at_most_a_tenth_of_the_runs(looks: int, kind: str):
    assert share_stopped(simulated(kind, RUNS[looks], looks)) <= 0.10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("looks", RUNS)
def test_a_sudden_fall_of_the_judge_by_one_sd_is_found_at_that_measurement(looks: int, kind: str):
    judge_rewards = simulated(kind, 200, looks)
    judge_rewards[:, -1] -= 1
    assert np.mean([judge_falls(run)[1][-1] for run in judge_rewards]) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("looks", RUNS)
def test_a_slow_fall_of_the_judge_after_a_slow_rise_is_found_by_the_time_it_is_one_sd(looks: int, kind: str):
    peak = looks // 2
    means = np.interp(np.arange(looks), [0, peak, looks - 1], [0, 1, 0])
    assert share_stopped(simulated(kind, 200, looks) + means[:, None]) >= 0.95


def test_an_sft_model_near_a_limit_and_a_policy_that_does_not_change_train_on():
    generator = np.random.default_rng(3)
    near = dataclasses.replace(LIMITS, min_eos_rate=0.25)

    def is_stopped() -> bool:
        ended, distinct = generator.random((24, 64)) < 0.26, generator.normal(0.505, 0.1, (24, 64))
        history = [
            dataclasses.replace(one, ended=ended[place], distinct_2=distinct[place])
            for place, one in enumerate(history_of(np.zeros((24, 64))))
        ]
        return any(verdicts(history, near))

    assert np.mean([is_stopped() for _ in range(200)]) <= 0.10


def test_the_decisions_of_a_longer_history_begin_with_those_of_a_shorter_one():
    run = history_of(simulated("independent", 1, 24)[0] - np.linspace(0, 2, 24)[:, None])  # its reward rises
    whole = verdicts(run, LIMITS)
    assert whole[0] is None
    assert whole[-1] is not None
    assert [verdict(run[: place + 1], LIMITS) for place in range(24)] == whole


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
        (measured(12, tokens=0), "update 12: 16 of 16 answers are empty"),
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
    # -0.41 at every prompt, so without any doubt
    reason = "update 12: the judge's reward fell by 0.41 since update 4, beyond chance, while the reward rose by 0.35: "
    assert verdict(history, LIMITS) == reason + "the policy is exploiting the reward model"
    assert verdict(history[:2], LIMITS) is None


def test_a_fall_of_the_judge_within_chance_is_no_reason_to_stop():
    noisy = measured(8, 1.2, 1.0)
    falls = np.array([-1.0, 0.9] * 8)  # mean -0.05, standard error about 0.24
    noisy = dataclasses.replace(noisy, judge_reward=1 + NOISE[::-1] + falls)
    assert verdict([measured(0, 0, 0), measured(4, 1, 1), noisy], LIMITS) is None


def test_a_judge_that_falls_with_the_reward_is_not_over_optimisation():
    assert verdict([measured(0, 0, 0), measured(4, 1, 1), measured(8, 0.9, 0.2)], LIMITS) is None


def chosen(history: list[Measured], by: str, guard: Guard) -> int:
    return best(history, verdicts(history, guard), by)


def test_the_best_update_has_the_highest_mean_of_best_by():
    history = [measured(0, 0, 0, 0), measured(4, 1, 3, 1), measured(8, 2, 2, 5), measured(12, 3, 2.99, 4)]
    assert chosen(history, "reward", OFF) == 12
    assert chosen(history, "judge", OFF) == 4
    assert chosen(history, "utility", OFF) == 8


def test_by_default_the_best_is_chosen_by_the_judge_or_without_one_by_the_reward():
    assert best_by(measured(0, 0, 0, 0), None) == "judge"
    assert best_by(measured(0, 0, None, 0), None) == "reward"
    assert best_by(measured(0, 0, 0, 0), "utility") == "utility"


def test_the_earlier_of_equal_updates_is_the_best():
    assert chosen([measured(0, 0), measured(4, 1), measured(8, 1)], "reward", LIMITS) == 4


def test_an_update_over_a_limit_is_never_the_best():
    history = [measured(0, 0), measured(4, 1), measured(8, 9, kl=60)]
    assert chosen(history, "reward", LIMITS) == 4
    assert chosen(history, "reward", OFF) == 8


def test_the_sft_model_is_the_best_if_all_updates_are_worse_or_over_a_limit():
    assert chosen([measured(0, 0), measured(4, -1), measured(8, 3, kl=60)], "reward", LIMITS) == 0
    assert chosen([measured(0, np.nan)], "reward", LIMITS) == 0


@pytest.mark.parametrize("by", ["judge", "utility"])
def test_best_by_a_figure_that_was_not_measured_is_refused(by: str):
    with pytest.raises(UserError, match=rf"ppo\.heldout\.best_by: {by}, which was not measured"):
        best_by(START, by)
