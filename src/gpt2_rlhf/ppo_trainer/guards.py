"""Decide from the held-out measurements whether PPO trains on or stops, and which update is the best so far.

A policy trained against a reward model comes to exploit its errors (Gao et al. 2023, arXiv:2210.10760): the reward
rises while the true quality falls. The true quality is unknown, but a judge (a second reward model with other data and
another seed) has other errors. All functions depend on the history alone, so a resumed run decides like an
uninterrupted one. A history is oldest first and starts with update 0, the SFT model.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.intervals import student_t
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.ppo_trainer import gates

_FIELDS = {"reward": "reward", "judge": "judge_reward", "utility": "utility"}  # of Measured, by name in best_by
_LEVEL = 0.006  # of the first test, chosen by the simulations of tests/ppo_trainer/test_guards.py


def verdicts(history: Sequence[Measured], guard: Guard) -> list[str | None]:
    """Return for each measurement in one line why to stop after it; None to go on, or if the guard is off.

    EOS rate and distinct bigrams stop the run only if they also fell beyond chance since update 0: an SFT model near
    the limit passes it by chance sooner or later, and PPO did not cause that.
    """
    if not guard.enabled:
        return [None] * len(history)
    start, once = history[0], [1] * len(history)
    ended, distinct = np.array([one.ended for one in history], float), np.array([one.distinct_2 for one in history])
    fell = zip(beyond_chance(ended - ended[0], once), beyond_chance(distinct - distinct[0], once), strict=True)
    found = [_limit_passed(start, newest, *both, guard) for newest, both in zip(history, fell, strict=True)]
    if start.judge_reward is not None:
        peaks, judge_fell = judge_falls(np.array([one.judge_reward for one in history]))
        for place in np.flatnonzero(judge_fell).tolist():
            found[place] = found[place] or _overoptimised(history[peaks[place]], history[place])
    return [reason and f"update {one.update}: {reason}" for one, reason in zip(history, found, strict=True)]


def best_by(start: Measured, by: str | None) -> str:
    """Return what the best update is chosen by: `by`, or without it the judge, or the reward if there is no judge.

    Raises:
        UserError: `by` was not measured.
    """
    if by is None:
        return "reward" if start.judge_reward is None else "judge"
    if getattr(start, _FIELDS[by]) is None:
        raise UserError(
            f"ppo.heldout.best_by: {by}, which was not measured; expected a measured one: set data.shares.judge "
            "above 0 for a judge or data.utility for a utility, or choose reward"
        )
    return by


def best(history: Sequence[Measured], reasons: Sequence[str | None], by: str) -> int:
    """Return the update with the highest mean of `by` among those without a reason to stop; 0 if there is none.

    reasons: those of `verdicts`. by: "reward", "judge" or "utility". Of equal updates the earlier one is the best.
    """
    pairs = zip(history, reasons, strict=True)
    means = {one.update: getattr(one, _FIELDS[by]).mean() for one, reason in pairs if reason is None}
    return max(means, key=lambda update: means[update], default=0)


def judge_falls(judge_rewards: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return the place of each measurement's peak, and whether the judge's reward fell beyond chance since then.

    The peak is the highest mean among the earlier measurements, the first of equals. judge_rewards has the shape
    (measurements, prompts).
    """
    means, places = judge_rewards.mean(1), range(len(judge_rewards))
    highest = accumulate(places, lambda peak, place: place if means[place] > means[peak] else peak)
    peaks = [0, *highest][:-1]
    return peaks, beyond_chance(judge_rewards - judge_rewards[peaks], places)  # the peak is one of all earlier ones


def beyond_chance(differences: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """Return for each measurement whether the mean of its differences is below 0 beyond chance, by Student's t test.

    At a fixed level, any run is stopped if it is only measured often enough. So the k-th measurement after update 0 is
    tested at 1 / sqrt(k) of the level, divided by the number of earlier measurements among which the compared one was
    chosen (Bonferroni). The tests of a run depend on each other, so no faster decrease is needed: with 64 prompts, a
    judge that does not move stops 2 % of the runs at 6 measurements, 4 % at 24, 8 % at 117 and 12 % at 400.

    differences: (measurements, prompts), paired by prompt; the first row is of update 0 and not below 0.
    candidates: (measurements,).
    """
    after, prompts = range(1, len(differences)), differences.shape[1]
    if prompts == 1:  # no spread to test with
        return np.full(len(differences), False)
    levels = [_LEVEL / place**0.5 / candidates[place] for place in after]
    bounds = np.array([0.0, *(student_t(level, prompts - 1) for level in levels)])
    means, errors = differences.mean(1), differences.std(1, ddof=1) / prompts**0.5
    return (means < 0) & (means <= -bounds * errors)


def _limit_passed(
    start: Measured, newest: Measured, eos_rate_fell: bool, distinct_2_fell: bool, guard: Guard
) -> str | None:
    assert newest.kl_nats is not None
    kl_nats, eos_rate, distinct_2 = newest.kl_nats.mean(), newest.ended.mean(), newest.distinct_2.mean()
    for name, mean in (("reward", newest.reward.mean()), ("KL", kl_nats)):
        if not np.isfinite(mean):
            return f"mean {name} {mean}: training has diverged"
    if kl_nats > guard.max_kl_nats:
        return f"KL to SFT {kl_nats:.1f} nats per answer, over ppo.guard.max_kl_nats {guard.max_kl_nats:g}"
    if eos_rate_fell and eos_rate < guard.min_eos_rate <= start.ended.mean():
        return f"EOS rate {eos_rate:.3f}, below ppo.guard.min_eos_rate {guard.min_eos_rate:g}"
    if distinct_2_fell and distinct_2 < guard.min_distinct_2 <= start.distinct_2.mean():
        return f"distinct bigrams {distinct_2:.3f}, below ppo.guard.min_distinct_2 {guard.min_distinct_2:g}"
    empty, already_empty = ((one.tokens == 0).sum().item() for one in (newest, start))
    prompts = newest.tokens.size
    if gates.mostly_empty(empty, prompts) and not gates.mostly_empty(already_empty, prompts):
        return f"{empty} of {prompts} answers are empty"
    answer_tokens, start_tokens = newest.tokens.mean(), start.tokens.mean()
    if answer_tokens > guard.max_length_ratio * start_tokens:
        return (
            f"answers of {answer_tokens:.1f} tokens, over ppo.guard.max_length_ratio {guard.max_length_ratio:g} x the "
            f"{start_tokens:.1f} of update {start.update}"
        )
    return None


def _overoptimised(peak: Measured, newest: Measured) -> str | None:
    """Return a reason to stop if the reward rose since the peak from which the judge's reward fell."""
    assert newest.judge_reward is not None
    assert peak.judge_reward is not None
    gain, fall = (newest.reward - peak.reward).mean(), (peak.judge_reward - newest.judge_reward).mean()
    if gain <= 0:
        return None
    return (
        f"the judge's reward fell by {fall:.2f} since update {peak.update}, beyond chance, while the reward rose by "
        f"{gain:.2f}: the policy is exploiting the reward model"
    )
