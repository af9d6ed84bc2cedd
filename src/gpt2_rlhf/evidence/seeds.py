"""Turn PPO runs that differ in their seed alone into their spread, and name the ones that collapsed.

PPO fails on some seeds (two of four at 1B parameters, vwxyzjn/summarize_from_feedback_details), so the figures of one
seed tell little about the next.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.tables import text
from gpt2_rlhf.store.run import Run


def of_run(run: Run, manifests: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the spread over the PPO seeds of a run, or None where the settings list no seeds.

    manifests: those of the stages by name, for each seed.
    """
    if run.settings.ppo.seeds is None:
        return None
    return spread([(one["ppo"], one["evaluate"]) for one in manifests], run.settings.ppo.guard)


def spread(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], guard: Guard) -> dict[str, Any]:
    """Return what `summary.json` has on the seeds. runs: the manifests of PPO and of its evaluation, for each seed.

    `over_seeds` has mean, sample standard deviation (null for one seed), min, max and n by metric, null where unknown.
    The model of the first seed is handed on, whatever the others gave.
    """
    keys = [one.key for one in metrics.OF_MODEL if one.over_seeds]
    by_seed = [
        {
            "seed": ppo["seed"],
            "kept_update": ppo["metrics"]["kept_update"],
            "stopped": ppo["metrics"]["stopped"],
            "collapsed": collapse(ppo["metrics"], evaluation["metrics"], guard),
            **{name: evaluation["metrics"]["models"]["ppo"][name] for name in keys},
        }
        for ppo, evaluation in runs
    ]
    return {
        "by_seed": by_seed,
        "collapsed": [one["seed"] for one in by_seed if one["collapsed"] is not None],
        "stopped": [one["seed"] for one in by_seed if one["stopped"] is not None],
        "over_seeds": {name: _over_seeds([one[name] for one in by_seed]) for name in keys},
    }


def collapse(ppo: Mapping[str, Any], evaluation: Mapping[str, Any], guard: Guard) -> str | None:
    """Return why a policy counts as collapsed: worse than SFT beyond the interval, endless or repetitive; else None.

    Worse is by the utility where it is known, else by a judge better than chance, else by the reward.
    """
    gain, figures = evaluation["paired"]["ppo_minus_sft"], evaluation["models"]["ppo"]
    judge = [] if ppo["judge_fault"] else [metrics.JUDGE_REWARD]
    measure = next(one for one in (metrics.UTILITY, *judge, metrics.REWARD) if gain[one.key] is not None)
    if gain[measure.key]["high"] < 0:
        return f"{measure.label.lower()} {text(gain[measure.key], measure.unit)} against SFT"
    if figures["eos_rate"]["mean"] < guard.min_eos_rate:
        return f"EOS rate {figures['eos_rate']['mean']:.3f}"
    if figures["distinct_2"]["mean"] < guard.min_distinct_2:
        return f"distinct bigrams {figures['distinct_2']['mean']:.3f}"
    return None


def _over_seeds(estimates: Sequence[Mapping[str, float] | None]) -> dict[str, Any] | None:
    means = [one["mean"] for one in estimates if one is not None]
    if len(means) < len(estimates):
        return None
    return {
        "mean": float(np.mean(means)),
        "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None,
        "min": min(means),
        "max": max(means),
        "n": len(means),
    }
