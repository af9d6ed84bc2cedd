"""Turn a run's manifests into where it came from: data, models, code, machine, seeds and times, to make it again."""

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence.tables import Row, Sources, Table, by_place, cell, look_up

_DATA = "manifests/data/metrics"
_OF_STAGE = (
    Metric("seed", "Seed", "count"),
    Metric("wall_s", "Wall time", "seconds"),
    Metric("work_s", "Of which work", "seconds"),
    Metric("peak_rss_mib", "Peak memory", "MiB"),
    Metric("device", "Device"),
    Metric("cpus", "CPUs", "count"),
    Metric("finished_at", "Finished"),
)
_OF_ROWS = (Metric("pairs", "Pairs", "count"), Metric("prompts", "Prompts", "count"))


def rows_read(sources: Sources) -> Table:
    """Return how many rows of the source were read, dropped by reason, cut and kept."""
    columns = {"train": "Training", "test": "Test"}
    reasons = sorted({reason for side in columns for reason in look_up(sources, f"{_DATA}/{side}/dropped")})
    dropped = {f"dropped/{reason}": f"Dropped: {reason}" for reason in reasons}
    counted = {"read": "Read", **dropped, "kept": "Kept", "turns_cut": "With turns cut from the prompt"}
    # a reason that is not listed for a side dropped none of its rows
    rows = [
        Row(label, [cell(sources, f"{_DATA}/{side}/{key}", default=0 if key in dropped else None) for side in columns])
        for key, label in counted.items()
    ]
    return Table("rows", "Rows of the data", columns, [row for row in rows if row.is_known])


def lineage(sources: Sources) -> list[Table]:
    """Return what the run was made of: the rows of the data, and each stage's seed, time, memory and machine."""
    used = {f"{_DATA}/tables/{name}": name for name in look_up(sources, f"{_DATA}/tables")}
    stages = {f"manifests/{name}": name for name in sources["manifests"]}
    return [
        rows_read(sources),
        by_place(sources, "used", "Rows by stage", _OF_ROWS, used),
        by_place(sources, "stages", "Stages, as they were built", _OF_STAGE, stages),
    ]


def facts(sources: Sources) -> list[Row]:
    """Return what identifies the run, a fact in a row."""
    records = sources["manifests"]
    policy = methods.of(records)
    keys = {
        "command": "Command",
        "run": "Run",
        "seed": "Seed",
        "evaluation/seed": "Seed of the evaluation",
        f"{_DATA}/source": "Data",
        "manifests/data/inputs/source": "Data by content",
        "base_model": "Base model",
        "manifests/sft/inputs/model": "Base model by content",
        f"manifests/{policy}/python": "Python",
        f"manifests/{policy}/platform": "Platform",
        f"manifests/{policy}/git_commit": "Commit of this project",
        **{f"manifests/{policy}/libraries/{name}": name for name in records[policy]["libraries"]},
        **{f"manifests/{name}/directory": f"Directory of {name}" for name in records},
        **{
            f"manifests/{name}/weights_sha256/{file}": f"sha256 of {name}'s {file}"
            for name, record in records.items()
            for file in record["weights_sha256"]
        },
    }
    return [Row(label, [cell(sources, key)]) for key, label in keys.items()]
