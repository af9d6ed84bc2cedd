"""Write the summary.json of a finished run, which the README documents; every figure comes from a manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import seeds
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
        **findings(records, seeds.spread(run.settings.ppo, of_seeds)),
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


def findings(records: Mapping[str, Mapping[str, Any]], over_seeds: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the stages found, by the names that summary.json and the tables have for it.

    records: each stage's manifest by its name. over_seeds: the spread over the policy's seeds, None without.
    """
    method = methods.of(records)
    names = {"sft": "sft", "reward_model": "reward", "judge": "judge", method: method, "evaluation": "evaluate"}
    found = {key: records[name]["metrics"] if name in records else None for key, name in names.items()}
    return {**found, "seeds": over_seeds}
