"""Turn PPO runs that differ in their seed alone into their spread, and name the ones that collapsed.

PPO at this size fails on some seeds (of four of 1B parameters two collapsed, vwxyzjn/summarize_from_feedback_details),
so one seed's figures say little about the next one's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.store.run import Run

METRICS = (
    "reward",
    "judge_reward",
    "utility",
    "win_rate_vs_sft",
    "kl_to_sft_nats",
    "answer_tokens",
    "eos_rate",
    "distinct_2",
)


def of_run(run: Run, manifests: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the spread over the PPO seeds of a run, or None where no seeds were asked for.

    manifests: those of the stages by name, for each seed.
    """
    if run.settings.ppo.seeds is None:
        return None
    return spread([(one["ppo"], one["evaluate"]) for one in manifests], run.settings.ppo.guard)


def spread(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], guard: Guard) -> dict[str, Any]:
    """What `summary.json` says of the seeds. runs: each one's manifests of PPO and of its evaluation.

    `over_seeds` has mean, sample standard deviation (null for one seed), min, max and n by metric, null where unknown;
    the first run is the one whose model is handed on, whatever the others gave.
    """
    by_seed = [
        {
            "seed": ppo["seed"],
            "kept_update": ppo["metrics"]["kept_update"],
            "stopped": ppo["metrics"]["stopped"],
            "collapsed": collapse(ppo["metrics"], evaluation["metrics"], guard),
            **{name: evaluation["metrics"]["models"]["ppo"][name] for name in METRICS},
        }
        for ppo, evaluation in runs
    ]
    return {
        "by_seed": by_seed,
        "collapsed": [one["seed"] for one in by_seed if one["collapsed"] is not None],
        "stopped": [one["seed"] for one in by_seed if one["stopped"] is not None],
        "over_seeds": {name: _over_seeds([one[name] for one in by_seed]) for name in METRICS},
    }


def collapse(ppo: Mapping[str, Any], evaluation: Mapping[str, Any], guard: Guard) -> str | None:
    """Why a policy counts as collapsed: worse than SFT beyond its interval, never ending or repeating; else None.

    Worse by the utility where it is known, else by a judge that tells answers apart, else by the reward.
    """
    gain, figures = evaluation["paired"]["ppo_minus_sft"], evaluation["models"]["ppo"]
    witnesses = ("utility", "reward") if ppo["judge_fault"] else ("utility", "judge_reward", "reward")
    name = next(name for name in witnesses if gain[name] is not None)
    if gain[name]["high"] < 0:
        return f"{name} {gain[name]['mean']:.2f} [{gain[name]['low']:.2f}, {gain[name]['high']:.2f}] against SFT"
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
