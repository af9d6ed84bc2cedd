"""The stage store (skeleton for helpers)."""
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


@dataclass(frozen=True)
class Outcome:
    """What a stage's run() gives back: its metrics, and the seconds spent training, generating or scoring."""

    metrics: dict[str, Any]
    work_s: float
