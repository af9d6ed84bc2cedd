"""Turn what was measured on held-out prompts into a verdict: train on, or stop, and which policy is the best so far.

A policy trained against a reward model comes to exploit its errors (Gao et al. 2023, arXiv:2210.10760): the training
reward rises while the truth falls. The truth is unknown, but a second reward model of other data and another seed, the
judge, has other errors. Pure functions of the history, so that a resumed run decides as an uninterrupted one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.intervals import bootstrap_mean
from gpt2_rlhf.evidence.measured import Measured


def verdict(history: Sequence[Measured], guard: Guard) -> str | None:
    """Why to stop after the newest measurement, in one line; None to go on, and always where the guard is off.

    history: oldest first, and update 0, the SFT model, first of all. A share that is below its limit already at
    update 0 is no fault of PPO's and not held against it.
    """
    if not guard.enabled:
        return None
    start, newest = history[0], history[-1]
    here = f"update {newest.update}"
    for name, values in (("reward", newest.rewards), ("KL", newest.kl_nats)):
        if not np.isfinite(values.mean()):
            return f"{here}: mean {name} {values.mean()}: training has diverged"
    kl_nats, tokens = newest.kl_nats.mean(), newest.answer_tokens.mean()
    if kl_nats > guard.max_kl_nats:
        return f"{here}: KL to SFT {kl_nats:.1f} nats per answer, over ppo.guard.max_kl_nats {guard.max_kl_nats:g}"
    eos_rate, distinct_2 = newest.ended.mean(), newest.distinct_2.mean()
    if eos_rate < guard.min_eos_rate <= start.ended.mean():
        return f"{here}: EOS rate {eos_rate:.3f}, below ppo.guard.min_eos_rate {guard.min_eos_rate:g}"
    if distinct_2 < guard.min_distinct_2 <= start.distinct_2.mean():
        return f"{here}: distinct bigrams {distinct_2:.3f}, below ppo.guard.min_distinct_2 {guard.min_distinct_2:g}"
    if tokens > guard.max_length_ratio * start.answer_tokens.mean():
        return (
            f"{here}: answers of {tokens:.1f} tokens, over ppo.guard.max_length_ratio {guard.max_length_ratio:g} x "
            f"the {start.answer_tokens.mean():.1f} of update {start.update}"
        )
    return _overoptimised(history)


def best(history: Sequence[Measured], by: str | None, guard: Guard) -> int:
    """The update with the highest mean of `by` among those that drew no verdict, the earlier of equals; or 0.

    by: "reward", "judge" or "utility"; None takes the judge, or the reward where there is no judge.

    Raises:
        UserError: there is no judge, or no utility, to choose by.
    """
    if by is None:
        by = "reward" if history[0].judge_rewards is None else "judge"
    columns: dict[str, Callable[[Measured], np.ndarray | None]] = {
        "reward": lambda measured: measured.rewards,
        "judge": lambda measured: measured.judge_rewards,
        "utility": lambda measured: measured.utilities,
    }
    best_update, best_mean = 0, -np.inf
    for place, measured in enumerate(history):
        values = columns[by](measured)
        if values is None:
            raise UserError(
                f"ppo.heldout.best_by: {by}, which was not measured; set data.shares.judge above 0 for a judge or "
                "data.utility for a utility, or choose reward"
            )
        if verdict(history[: place + 1], guard) is None and values.mean() > best_mean:
            best_update, best_mean = measured.update, values.mean()
    return best_update


def _overoptimised(history: Sequence[Measured]) -> str | None:
    """The verdict where the reward rose since the judge liked the policy most, and the judge's fall is beyond chance.

    Differences are paired by prompt. The peak is the best of several and so partly luck, which makes the interval's
    level a little less than 95 %; that every update has the same prompts and draws keeps luck small.
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
        f"{peak.update}'s while the reward rose by {gain:.2f}: the policy is fooling the reward model"
    )
