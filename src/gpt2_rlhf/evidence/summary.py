"""Write the summary.json of a finished run, which the README documents; every figure comes from a manifest.

The figures of one seed tell little about the next: PPO fails on some seeds (two of four at 1B parameters,
vwxyzjn/summarize_from_feedback_details). So the spread over seeds is part of it, and names those that collapsed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard, Ppo
from gpt2_rlhf.evidence.comparison import usable_measures
from gpt2_rlhf.evidence.tables import text
from gpt2_rlhf.store.files import link, read_json, write_json
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import Stage, manifest

FILE = "summary.json"


def write(run: Run, built: Sequence[Stage], wall_s: float) -> dict[str, Any]:
    """Write summary.json and a link to samples.jsonl into the run's directory, and return the summary.

    built: the stages that this call built; all others were reused. wall_s: seconds this call took so far.
    """
    stages, of_seeds = run.plans[0], run.manifests()
    records = of_seeds[0]
    result = {
        "run": run.name,
        "command": run.command,
        "seed": run.settings.seed,
        **{key: records[methods.of(records)][key] for key in ("device", "cpus")},
        "finished_at": records["evaluate"]["finished_at"],
        "wall_s": wall_s,
        "work_s": sum(manifest(stage)["work_s"] for stage in built),
        "peak_rss_mib": max(record["peak_rss_mib"] for record in records.values()),
        "stages": {
            name: {
                **{key: record[key] for key in ("directory", "wall_s", "work_s")},
                "reused": stages[name] not in built,
            }
            for name, record in records.items()
        },
        **findings(records, spread(run.settings.ppo, of_seeds)),
    }
    write_json(run.directory / FILE, result)
    link(run.directory / "samples.jsonl", Path("evaluate", "samples.jsonl"))
    return result


def read(run_dir: Path) -> dict[str, Any]:
    """Return the summary of a finished run.

    Raises:
        UserError: there is none.
    """
    try:
        return read_json(run_dir / FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run_dir / FILE}: there is no finished run; run `make pipeline` first, with the same overrides"
        ) from error


def findings(records: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the stages found, by the names that summary.json and the tables have for it.

    records: each stage's manifest by its name. seeds: their `spread`.
    """
    method = methods.of(records)
    judge = records["judge"]["metrics"] if "judge" in records else None
    names = {"sft": "sft", "reward_model": "reward", method: method, "evaluation": "evaluate"}
    return {**{key: records[name]["metrics"] for key, name in names.items()}, "judge": judge, "seeds": seeds}


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
        found = findings(run, None)
        by_seed.append(
            {
                "seed": run[method]["seed"],
                **{name: found[method].get(name) for name in ("kept_update", "stopped")},
                "collapsed": collapse(found, settings.guard),
                **{name: found["evaluation"]["models"][method].get(name) for name in keys},
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
