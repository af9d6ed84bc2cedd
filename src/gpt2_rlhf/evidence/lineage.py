"""Turn a run's manifests into where it came from: data, models, code, machine, seeds and times, to make it again."""

from gpt2_rlhf.evidence.report_tables import Row, Sources, Table, cell, look_up


def lineage(sources: Sources) -> list[Table]:
    """What the run was made of: the rows of the data, and each stage's seed, time, memory and machine."""
    data, stages = "manifests/data/metrics", list(sources["manifests"])
    sides = [look_up(sources, f"{data}/{side}") for side in ("train", "test")]
    reasons = sorted({reason for side in sides for reason in side["dropped"]})
    counted = {"read": "Read", **{f"dropped/{reason}": f"Dropped: {reason}" for reason in reasons}, "kept": "Kept"}
    of_stage = {
        "seed": ("Seed", "count"),
        "wall_s": ("Wall time", "seconds"),
        "work_s": ("Of which work", "seconds"),
        "peak_rss_mib": ("Peak memory", "MiB"),
        "device": ("Device", "count"),
        "cpus": ("CPUs", "count"),
        "finished_at": ("Finished", "count"),
    }
    return [
        Table(
            "rows",
            "Rows of the data",
            ["Train", "Test"],
            [
                Row(label, [cell(sources, f"{data}/{s}/{key}") for s in ("train", "test")])
                for key, label in counted.items()
            ],
            None,
        ),
        Table(
            "used",
            "Rows by stage",
            ["Pairs", "Prompts"],
            [
                Row(name, [cell(sources, f"{data}/tables/{name}/{key}") for key in ("pairs", "prompts")])
                for name in look_up(sources, f"{data}/tables")
            ],
            None,
        ),
        Table(
            "stages",
            "Stages, as they were built",
            [label for label, _ in of_stage.values()],
            [
                Row(name, [cell(sources, f"manifests/{name}/{key}", unit) for key, (_, unit) in of_stage.items()])
                for name in stages
            ],
            None,
        ),
    ]


def facts(sources: Sources) -> list[Row]:
    """What identifies the run, a fact in a row."""
    records = sources["manifests"]
    keys = {
        "Command": "command",
        "Run": "run",
        "Seed": "seed",
        "Seed of the evaluation": "evaluation/seed",
        "Data": "manifests/data/metrics/source",
        "Data by content": "manifests/data/inputs/source",
        "Base model": "base_model",
        "Base model by content": "manifests/sft/inputs/model",
        "Python": "manifests/ppo/python",
        "Platform": "manifests/ppo/platform",
        "Commit of this project": "manifests/ppo/git_commit",
    }
    rows = [Row(label, [cell(sources, key)]) for label, key in keys.items()]
    libraries = records["ppo"]["libraries"]
    rows += [Row(name, [cell(sources, f"manifests/ppo/libraries/{name}")]) for name in libraries]
    rows += [Row(f"Directory of {name}", [cell(sources, f"manifests/{name}/directory")]) for name in records]
    rows += [
        Row(f"sha256 of {name}'s {file}", [cell(sources, f"manifests/{name}/weights_sha256/{file}")])
        for name, record in records.items()
        for file in record["weights_sha256"]
    ]
    return rows
