"""Record one stage of a run: its directory, named by a hash of all that decides the result, and its manifest.

Same inputs, same directory: a second run trains nothing, and a sweep never overwrites. manifest.json is written last
and by one rename; it alone means done. open-instruct's dataset cache names its folders in the same way.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


def is_done(stage: Stage) -> bool:
    """Whether the stage has a manifest, which is written when all else is on disk."""
    return (stage.directory / "manifest.json").is_file()


def manifest(stage: Stage) -> dict[str, Any]:
    """Read the manifest of a finished stage."""
    return json.loads((stage.directory / "manifest.json").read_text(encoding="utf-8"))


def newest_whole_checkpoint(stage: Stage, processes: int) -> Path | None:
    """Return the newest checkpoint that is complete for this number of processes, or None.

    Both transformers' Trainer (`_save_checkpoint`) and our PPO write trainer_state.json after the weights, optimizer
    and scheduler, so if it parses, those are complete. Every process adds a file with its random state.
    """
    numbered = [
        (int(p.name.removeprefix("checkpoint-")), p)
        for p in stage.checkpoints_dir.glob("checkpoint-*")
        if p.name.removeprefix("checkpoint-").isdigit()
    ]
    whole = (p for _, p in sorted(numbered, reverse=True) if _is_whole(p, processes))
    return next(whole, None)


def _is_whole(checkpoint: Path, processes: int) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return len(list(checkpoint.glob("rng_state*.pth"))) == processes
