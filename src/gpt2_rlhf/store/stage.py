"""Record one stage of a run: its directory, named by a hash of all that decides the result, and its manifest.

Same inputs, same directory: a second run trains nothing, and a sweep never overwrites. manifest.json is written last
and by one rename: with it the stage is done, as long as the files that it records are whole. open-instruct's dataset
cache names its folders in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.methods import LABELS
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import content_sha256, read_json, write_json

NOT_BUILT = "it is not built"
TRAINED = ("sft", "reward", "judge", *LABELS)  # the stages that train a model, in the order in which they are built
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Stage:
    """One stage of one run: its name, its directory by content hash, what was hashed, what it builds on."""

    name: str
    directory: Path
    inputs: Mapping[str, Any]
    needs: Mapping[str, "Stage"]

    @property
    def model_dir(self) -> Path:
        """Where the stage leaves its model and tokenizer."""
        return self.directory / "model"

    @property
    def seed(self) -> int:
        """The seed of the stage's training."""
        return int(self.inputs["seed"])

    @property
    def checkpoints_dir(self) -> Path:
        """Where the trainer keeps checkpoint-N folders until the stage is done."""
        return self.directory / "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """The result of a step: its metrics, and the seconds spent training, generating or scoring."""

    metrics: dict[str, Any]
    work_s: float


def fault(stage: Stage, read_all: bool = False) -> str | None:
    """Return why the stage is not done, or None; NOT_BUILT if it has no manifest, which is written last.

    read_all: read every byte of its files, as is right before another stage builds on them.

    Raises:
        UserError: a file may not be read.
    """
    path = stage.directory / _MANIFEST
    if not path.is_file():
        return NOT_BUILT
    if (written := _whole_manifest(stage)) is None:
        return f"{_MANIFEST} is damaged"
    for name, need in stage.needs.items():
        found = _whole_manifest(need)
        if found is not None and _handed_on(found) != written["needs"].get(name):
            return f"it was built on another {name}"
    return digests.fault(stage.directory, written["files"], path.stat().st_mtime, read_all)


def unfinished(stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages that are not done; every byte of the finished ones that they build on is read."""
    found: list[Stage] = []
    for stage in reversed(stages):
        is_needed = any(need.directory == stage.directory for one in found for need in one.needs.values())
        if fault(stage, read_all=is_needed) is not None:
            found.insert(0, stage)
    return found


def manifest(stage: Stage) -> dict[str, Any]:
    """Read the manifest of a finished stage."""
    return read_json(stage.directory / _MANIFEST)


def write_manifest(stage: Stage, content: Mapping[str, Any]) -> None:
    """Write the manifest, which says that the stage is done, with a record of its files and of what it was built on."""
    files = [path for path in stage.directory.rglob("*") if path.is_file() and _is_recorded(path, stage)]
    needs = {name: _handed_on(manifest(need)) for name, need in stage.needs.items()}
    whole = {**content, "needs": needs, "files": digests.record(stage.directory, files)}
    write_json(stage.directory / _MANIFEST, {**whole, "manifest_sha256": content_sha256(whole)})
    digests.flush(stage.directory)


def newest_whole_checkpoint(stage: Stage, processes: int) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest whole checkpoint of this number of processes, if any, and what is wrong with later ones.

    A checkpoint that a kill left without its seal is neither.
    """
    sealed = (seal.parent for seal in stage.checkpoints_dir.glob(f"checkpoint-*/{digests.SEAL}"))
    numbered = [(int(number), one) for one in sealed if (number := one.name.removeprefix("checkpoint-")).isdigit()]
    damaged: dict[Path, str] = {}
    for _, path in sorted(numbered, reverse=True):
        if (found := digests.seal_fault(path)) is not None:
            damaged[path] = found
        elif len(list(path.glob("rng_state*.pth"))) == processes:  # each process adds its random state
            return path, damaged
    return None, damaged


def _is_recorded(path: Path, stage: Stage) -> bool:
    """Whether a file is part of the result: not a log, a picture, which is drawn from other files, or a tracker's."""
    is_own = path.parts[len(stage.directory.parts)] not in ("checkpoints", "tensorboard", _MANIFEST)
    return is_own and path.suffix not in (".log", ".png") and not path.name.startswith(".")


def _handed_on(written: Mapping[str, Any]) -> str:
    """Return a hash of what later stages read: rows and models; logs differ each time a stage is built."""
    return content_sha256(
        {name: one for name, one in written["files"].items() if name.startswith("model/") or name.endswith(".parquet")}
    )


def _whole_manifest(stage: Stage) -> dict[str, Any] | None:
    """Return the manifest, or None if there is none or it is not as it was written."""
    try:
        written = manifest(stage)
        content = {name: value for name, value in written.items() if name != "manifest_sha256"}
        return written if content_sha256(content) == written["manifest_sha256"] else None
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
