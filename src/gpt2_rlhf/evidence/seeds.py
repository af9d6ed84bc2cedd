"""Turn policies that differ in their seed alone into their spread, and name the ones that collapsed.

PPO fails on some seeds (two of four at 1B parameters, vwxyzjn/summarize_from_feedback_details), so the figures of one
seed tell little about the next.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.settings import Guard, Ppo
from gpt2_rlhf.evidence.comparison import usable_measures
from gpt2_rlhf.evidence.tables import text


def spread(settings: Ppo, runs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return what `summary.json` has on the seeds, None where the settings list none.

    runs: for each seed, the manifests of its stages. `over_seeds` has mean, sample standard deviation (null for one
    seed), min, max and n by metric, null where unknown. The model of the first seed is handed on in any case.
    """
    if settings.seeds is None:
        return None
    method = methods.of(runs[0])
    keys = [one.key for one in metrics.OF_MODEL if one.over_seeds]
    by_seed: list[dict[str, Any]] = []
    for run in runs:
        policy, evaluation = run[method]["metrics"], run["evaluate"]["metrics"]
        found = {method: policy, "evaluation": evaluation, "judge": run["judge"]["metrics"] if "judge" in run else None}
        by_seed.append(
            {
                "seed": run[method]["seed"],
                **{name: policy.get(name) for name in ("kept_update", "stopped")},
                "collapsed": collapse(found, settings.guard),
                **{name: evaluation["models"][method].get(name) for name in keys},
            }
        )
    return {
        "by_seed": by_seed,
        **{name: [one["seed"] for one in by_seed if one[name] is not None] for name in ("collapsed", "stopped")},
        "over_seeds": {name: over_seeds([one[name] for one in by_seed]) for name in keys},
    }


def collapse(found: Mapping[str, Any], guard: Guard) -> str | None:
    """Return why a policy counts as collapsed: worse than SFT beyond the interval, endless or repetitive; else None.

    Worse is by the utility where it is known, else by a judge better than chance, else by the reward.
    found: the metrics of policy, judge and evaluation, as summary.json has them.
    """
    method, evaluation = methods.of(found), found["evaluation"]
    gain, figures = evaluation["paired"][f"{method}_minus_sft"], evaluation["models"][method]
    measure = usable_measures(found)[0]
    if gain[measure.key]["high"] < 0:
        return f"{measure.label.lower()} {text(gain[measure.key], measure.unit)} against SFT"
    limits = {"eos_rate": ("EOS rate", guard.min_eos_rate), "distinct_2": ("distinct bigrams", guard.min_distinct_2)}
    means = {key: figures[key]["mean"] for key in limits}
    low = (f"{name} {means[key]:.3f}" for key, (name, least) in limits.items() if means[key] < least)
    return next(low, None)


def over_seeds(estimates: Sequence[Mapping[str, float] | None]) -> dict[str, Any] | None:
    """Return mean, sample standard deviation, min, max and n of the means; None where one is unknown."""
    means = [one["mean"] for one in estimates if one is not None]
    if len(means) < len(estimates):
        return None
    sd = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return {"mean": float(np.mean(means)), "sd": sd, "min": min(means), "max": max(means), "n": len(means)}
