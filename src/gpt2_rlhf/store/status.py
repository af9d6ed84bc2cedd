"""Say which stages of a run are done, partial or missing, and why."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gpt2_rlhf.config.settings import flat
from gpt2_rlhf.store import locks
from gpt2_rlhf.store.files import read_json
from gpt2_rlhf.store.stage import NOT_BUILT, Stage, fault, manifest, newest_whole_checkpoint


def status(stage: Stage) -> tuple[str, str]:
    """Return ("done" | "running" | "damaged" | "partial" | "missing", why)."""
    wrong = fault(stage)
    if wrong is None:
        record = manifest(stage)
        return "done", f"{record['finished_at']}, {record['wall_s']:.0f} s"
    if stage.directory.exists() and locks.is_held(stage):
        return "running", "another process is building it"
    if wrong != NOT_BUILT:
        return "damaged", f"{wrong}; it will be built again"
    if (checkpoint := newest_whole_checkpoint(stage, stage.inputs.get("processes", 1))[0]) is not None:
        written = datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC)  # no age, since a clock may be set back
        return "partial", f"resumes from {checkpoint.name}, written {written:%Y-%m-%d %H:%M:%S} UTC"
    if kept := sorted(part.parent.name for part in stage.checkpoints_dir.glob("*/results.json")):
        return "partial", f"goes on after {', '.join(kept)}"
    if stage.directory.exists():
        return "partial", "started, no whole checkpoint yet; it will start again"
    return "missing", _nearest_difference(stage)


def _nearest_difference(stage: Stage) -> str:
    """Name the input that differs from the most similar finished stage of the same name."""
    mine = dict(flat(stage.inputs))
    differences: list[list[str]] = []
    for path in stage.directory.parent.glob(f"{stage.name}-*/manifest.json"):
        try:
            theirs = dict(flat(read_json(path)["inputs"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a damaged manifest
        keys = [k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)]
        keys.sort(key=lambda key: (key.startswith("needs."), key))  # a setting says more than another stage's hash
        if keys:  # none: a renamed copy of this stage
            differences.append([_difference(key, mine, theirs, path.parent.name) for key in keys])
    if not differences:
        return "never built"
    nearest = min(differences, key=len)
    more = f" (and {len(nearest) - 1} more)" if len(nearest) > 1 else ""
    return f"not built: {nearest[0]}{more}"


def _difference(key: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> str:
    if key.startswith("needs."):
        return f"needs another {key.removeprefix('needs.')} than {name}"
    return f"{key} is {mine.get(key)}, not {theirs.get(key)} as in {name}"
