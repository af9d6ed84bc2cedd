"""Put a run's results where a user looks: outputs/latest with its stages, summary.json, samples and the model.

outputs/runs/<hash> holds links into the stage store, so runs that share stages share their bytes; outputs/latest is
one symbolic link to the newest run, replaced by a rename.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf import config, product, report, seeds, table
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage, manifest, write_json


def finish(
    settings: Settings,
    argv: Sequence[str],
    by_seed: Sequence[Mapping[str, Stage]],
    built: Sequence[Stage],
    wall_s: float,
) -> None:
    """Link the stages as the newest run and print what the last of them found.

    by_seed: the stages of the run for each seed of PPO's; the first one's model is the product. built: the stages that
    this call ran, all others were re-used. wall_s: seconds this call took so far.
    """
    stages = by_seed[0]
    last = list(stages.values())[-1]
    run_dir = directory(settings, last)
    run_dir.mkdir(parents=True, exist_ok=True)
    for part in stages.values():
        _link(run_dir / part.name, Path("..", "..", "stages", part.directory.name))
    for others in by_seed[1:]:
        for part in (others[name] for name in ("ppo", "evaluate") if name in others):
            _link(run_dir / f"{part.name}-seed{others['ppo'].seed}", Path("..", "..", "stages", part.directory.name))
    (run_dir / "config.yaml").write_text(config.show(argv), encoding="utf-8")
    if last.name == "evaluate":
        result = summary(settings, argv, by_seed, built, wall_s)
        write_json(run_dir / "summary.json", result)
        _link(run_dir / "samples.jsonl", Path("evaluate", "samples.jsonl"))
        print(table.render(result), end="", flush=True)
        report.write(run_dir, settings, {name: manifest(part) for name, part in stages.items()}, result)
        product.write(settings, argv, by_seed, run_dir)  # it takes the report's plots along
    if last.name == "data":
        if not built:  # else the build has printed it
            print_found(last)
        _print_rows(settings, last)
    latest = Path(settings.output_dir) / "latest"
    _link(latest, Path("runs", run_dir.name))
    _print_end(last, latest, settings)


def directory(settings: Settings, last: Stage) -> Path:
    """Where the run lies that ends with this stage."""
    return Path(settings.output_dir) / "runs" / last.directory.name.rpartition("-")[2]


def print_found(part: Stage) -> None:
    """What a stage found, as soon as it is done: the row report, or one line."""
    record = manifest(part)
    metrics = record["metrics"]
    if part.name == "data":
        from gpt2_rlhf import preview  # it needs transformers, which showing a finished run does not

        report = json.loads((part.directory / "data.json").read_text(encoding="utf-8"))
        print(f"{preview.report_text(report)}\n", flush=True)
    elif part.name != "evaluate":
        print(f"{part.name} done in {record['wall_s']:.0f} s: {table.found(part.name, metrics)}", flush=True)


def _print_rows(settings: Settings, data_stage: Stage) -> None:
    from gpt2_rlhf import data, models, preview  # as above

    tables = {name: data.load(data_stage.directory, name) for name in ("sft", "reward", "ppo")}
    print(f"{preview.preview(models.load_base_tokenizer(settings.model), tables)}\n")


def summary(
    settings: Settings,
    argv: Sequence[str],
    by_seed: Sequence[Mapping[str, Stage]],
    built: Sequence[Stage],
    wall_s: float,
) -> dict[str, Any]:
    """What summary.json holds; the README documents it. Every figure comes from a manifest."""
    stages = by_seed[0]
    records = {name: manifest(part) for name, part in stages.items()}
    work_s = sum(manifest(part)["work_s"] for part in built)
    of_seeds = [(manifest(plan["ppo"]), manifest(plan["evaluate"])) for plan in by_seed]
    return {
        "run": stages["evaluate"].directory.name.rpartition("-")[2],
        "command": shlex.join(["make", "pipeline", *config.in_order(argv)]),
        "seed": settings.seed,
        "device": records["ppo"]["device"],
        "cpus": records["ppo"]["cpus"],
        "finished_at": records["evaluate"]["finished_at"],
        "wall_s": wall_s,
        "work_s": work_s,
        "peak_rss_mib": max(record["peak_rss_mib"] for record in records.values()),
        "stages": {
            name: {
                "directory": record["directory"],
                "wall_s": record["wall_s"],
                "work_s": record["work_s"],
                "reused": stages[name] not in built,
            }
            for name, record in records.items()
        },
        "sft": records["sft"]["metrics"],
        "reward_model": records["reward"]["metrics"],
        "judge": records["judge"]["metrics"] if "judge" in records else None,
        "ppo": records["ppo"]["metrics"],
        "evaluation": records["evaluate"]["metrics"],
        "seeds": seeds.spread(of_seeds, settings.ppo.guard) if settings.ppo.seeds is not None else None,
    }


def _link(link: Path, target: Path) -> None:
    """Point a symbolic link at a target relative to it, by one rename."""
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)


def _print_end(last: Stage, latest: Path, settings: Settings) -> None:
    if last.name != "evaluate":
        print(f"{last.name} is done: {latest / last.name} ({manifest(last)['wall_s']:.1f} s when it was built)")
        return
    print(f"\nModel and card: {latest / 'model'}")
    print(f"Figures: {latest / 'summary.json'}   samples: {latest / 'samples.jsonl'}")
    print(f"Report: {latest / report.DIRECTORY / report.PAGE}")
    if settings.publish.repo_id is None:
        print(
            "To publish: hf auth login, then the same command with publish.repo_id=<user>/<name>; nothing trains again"
        )
