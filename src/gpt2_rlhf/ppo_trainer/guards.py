"""Decide from the held-out measurements whether PPO trains on or stops, and which update is the best so far.

A policy trained against a reward model comes to exploit its errors (Gao et al. 2023, arXiv:2210.10760): the reward
rises while the true quality falls. The true quality is unknown, but a judge (a second reward model with other data and
another seed) has other errors. All functions depend on the history alone, so a resumed run decides like an
uninterrupted one.
"""

from collections.abc import Sequence

import numpy as np

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured


def verdict(history: Sequence[Measured], guard: Guard) -> str | None:
    """Return in one line why to stop after the newest measurement; None to go on, or if the guard is off.

    history: oldest first, starting with update 0, the SFT model. EOS rate and distinct bigrams stop the run only if the
    SFT model was within their limit: otherwise PPO did not cause it.
    """
    if not guard.enabled:
        return None
    start, newest = history[0], history[-1]
    here = f"update {newest.update}"
    assert newest.kl_nats is not None
    reward, kl_nats, answer_tokens = newest.rewards.mean(), newest.kl_nats.mean(), newest.answer_tokens.mean()
    for name, mean in (("reward", reward), ("KL", kl_nats)):
        if not np.isfinite(mean):
            return f"{here}: mean {name} {mean}: training has diverged"
    if kl_nats > guard.max_kl_nats:
        return f"{here}: KL to SFT {kl_nats:.1f} nats per answer, over ppo.guard.max_kl_nats {guard.max_kl_nats:g}"
    eos_rate, distinct_2 = newest.ended.mean(), newest.distinct_2.mean()
    if eos_rate < guard.min_eos_rate <= start.ended.mean():
        return f"{here}: EOS rate {eos_rate:.3f}, below ppo.guard.min_eos_rate {guard.min_eos_rate:g}"
    if distinct_2 < guard.min_distinct_2 <= start.distinct_2.mean():
        return f"{here}: distinct bigrams {distinct_2:.3f}, below ppo.guard.min_distinct_2 {guard.min_distinct_2:g}"
    if answer_tokens > guard.max_length_ratio * start.answer_tokens.mean():
        return (
            f"{here}: answers of {answer_tokens:.1f} tokens, over ppo.guard.max_length_ratio "
            f"{guard.max_length_ratio:g} x the {start.answer_tokens.mean():.1f} of update {start.update}"
        )
    return _overoptimised(history)


def best(history: Sequence[Measured], by: str | None, guard: Guard) -> int:
    """Return the update with the highest mean of `by` among those within all limits, the earlier of equals; or 0.

    by: "reward", "judge" or "utility"; None means the judge, or the reward if there is no judge.

    Raises:
        UserError: `by` was not measured.
    """
    if by is None:
        by = "reward" if history[0].judge_rewards is None else "judge"
    best_update, best_mean = 0, -np.inf
    for place, measured in enumerate(history):
        values = {"reward": measured.rewards, "judge": measured.judge_rewards, "utility": measured.utilities}[by]
        if values is None:
            raise UserError(
                f"ppo.heldout.best_by: {by}, which was not measured; expected a measured one: set data.shares.judge "
                "above 0 for a judge or data.utility for a utility, or choose reward"
            )
        if verdict(history[: place + 1], guard) is None and values.mean() > best_mean:
            best_update, best_mean = measured.update, values.mean()
    return best_update


def _overoptimised(history: Sequence[Measured]) -> str | None:
    """Return a reason to stop if the judge's reward fell beyond chance since its peak while the reward rose.

    Differences are paired by prompt. The peak is the maximum of several means and so biased upwards, which makes the
    interval's level a little less than 95 %; the common prompts and draws of all updates keep that bias small.
    """
    newest = history[-1]
    judged = [(one, one.judge_rewards) for one in history[:-1] if one.judge_rewards is not None]
    if newest.judge_rewards is None or not judged:
        return None
    peak, peak_judge_rewards = max(judged, key=lambda pair: pair[1].mean())
    gain = (newest.rewards - peak.rewards).mean()
    fall = bootstrap_mean(newest.judge_rewards - peak_judge_rewards)
    if fall.high >= 0 or gain <= 0:
        return None
    return (
        f"update {newest.update}: judge reward {fall.mean:.2f} [{fall.low:.2f}, {fall.high:.2f}] against update "
        f"{peak.update}'s while the reward rose by {gain:.2f}: the policy is exploiting the reward model"
    )
