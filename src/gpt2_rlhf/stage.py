"""Stages as functions of their inputs: a directory named by a hash of all that decides the result, and a manifest.

The hash covers a format number, the stage's settings, the base model, the data and the stages it builds on. Same
inputs, same directory: a second run trains nothing, and a sweep never overwrites. manifest.json is written last and
by one rename; it alone means done. open-instruct's dataset cache keys itself in the same way.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf import model_files, sources
from gpt2_rlhf.settings import Settings

FORMAT = 4  # raise it when the same settings come to mean another result

# Arguments of TRL's configs that cannot change the weights: what is logged, kept on disk or done by how many workers.
NOT_HASHED = frozenset(
    {
        "logging_dir",
        "logging_first_step",
        "logging_steps",
        "logging_strategy",
        "log_level",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "save_steps",
        "save_strategy",
        "save_total_limit",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataset_num_proc",
    }
)


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
        """What the stage's training draws its random numbers from."""
        return int(self.inputs["seed"])

    @property
    def checkpoints_dir(self) -> Path:
        """Where the trainer keeps checkpoint-N folders until the stage is done."""
        return self.directory / "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What a stage's run() gives back: its metrics, and the seconds spent training, generating or scoring."""

    metrics: dict[str, Any]
    work_s: float


def plans(settings: Settings, processes: int) -> list[dict[str, Stage]]:
    """The stages of a run for each seed of PPO's, the first its own; all but the last two stages are shared."""
    return [plan(settings, processes, seed) for seed in settings.ppo.seeds or [settings.seed]]


def plan(settings: Settings, processes: int, ppo_seed: int) -> dict[str, Stage]:
    """The stages of a run in order. Reads the content of local models and data, and nothing else.

    processes: data-parallel processes of the training stages; it scales the batch and so the result.
    """
    base = {"model": model_files.identity(settings.model), "random": settings.model.random}
    trained = {"seed": settings.seed, "processes": processes}
    judges = ("judge",) if settings.data.has_judge else ()
    needs: dict[str, tuple[str, ...]] = {
        "data": (),
        "sft": ("data",),
        "reward": ("data", "sft"),
        **dict.fromkeys(judges, ("data", "sft")),
        "ppo": ("data", "sft", "reward", *judges),
        "evaluate": ("data", "sft", "reward", *judges, "ppo"),
    }
    own: dict[str, dict[str, Any]] = {
        "data": {"data": _split_settings(settings), "source": sources.fingerprint(settings.data), **base},
        "sft": {"sft": _hashed(settings.sft), **base, **trained},
        "reward": {"reward": _hashed(settings.reward), **trained},
        "judge": {"reward": _hashed(settings.reward), **trained, "seed": settings.seed + 1},
        "ppo": {"ppo": _ppo_settings(settings), **trained, "seed": ppo_seed},
        "evaluate": {"evaluate": dataclasses.asdict(settings.evaluate), "utility": settings.data.utility, **base},
    }
    stages: dict[str, Stage] = {}
    for name, builds_on in needs.items():
        inputs = {"format": FORMAT, **own[name], "needs": {n: stages[n].directory.name for n in builds_on}}
        directory = Path(settings.output_dir) / "stages" / f"{name}-{content_hash(inputs)}"
        stages[name] = Stage(name, directory, inputs, {n: stages[n] for n in builds_on})
    return stages


def content_hash(inputs: Mapping[str, Any]) -> str:
    """Twelve hex digits of the sha256 over canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_done(stage: Stage) -> bool:
    """Whether the stage has a manifest, which is written when all else is on disk."""
    return (stage.directory / "manifest.json").is_file()


def manifest(stage: Stage) -> dict[str, Any]:
    """The manifest of a finished stage."""
    return json.loads((stage.directory / "manifest.json").read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def newest_whole_checkpoint(stage: Stage, processes: int) -> Path | None:
    """The newest checkpoint that was written to its end, for as many processes; None where there is none.

    Both transformers' Trainer (`_save_checkpoint`) and our PPO write trainer_state.json after the weights, optimizer
    and scheduler, so a file that parses means that those are whole; every process adds a random state of its own.
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


def status(stage: Stage, processes: int) -> tuple[str, str]:
    """("done" | "partial" | "missing", why), for `make status`."""
    if is_done(stage):
        record = manifest(stage)
        return "done", f"{record['finished_at']}, {record['wall_s']:.0f} s"
    if (checkpoint := newest_whole_checkpoint(stage, processes)) is not None:
        age_s = time.time() - checkpoint.stat().st_mtime
        return "partial", f"resumes from {checkpoint.name}, written {age_s / 60:.0f} min ago"
    if kept := sorted(part.stem for part in stage.checkpoints_dir.glob("*.json")):
        return "partial", f"goes on after {', '.join(kept)}"
    if stage.directory.exists():
        return "partial", "started, no whole checkpoint yet; it will start again"
    return "missing", _nearest_difference(stage)


def _nearest_difference(stage: Stage) -> str:
    """What sets this stage apart from the finished one of the same name that differs least."""
    mine = dict(_flat(stage.inputs))
    differences: list[list[str]] = []
    for path in stage.directory.parent.glob(f"{stage.name}-*/manifest.json"):
        theirs = dict(_flat(json.loads(path.read_text(encoding="utf-8"))["inputs"]))
        keys = [k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]
        differences.append([f"{k} is {mine.get(k)}, not {theirs.get(k)} as in {path.parent.name}" for k in keys])
    if not differences:
        return "never built"
    nearest = min(differences, key=len)
    more = f" (and {len(nearest) - 1} more)" if len(nearest) > 1 else ""
    return f"not built: {nearest[0]}{more}"


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _split_settings(settings: Settings) -> dict[str, Any]:
    """What is done with the rows; which rows they are is the source's fingerprint, wherever they lie."""
    elsewhere = {"name", "revision", "path", "subsets", "utility"}
    return {k: v for k, v in dataclasses.asdict(settings.data).items() if k not in elsewhere}


def _ppo_settings(settings: Settings) -> dict[str, Any]:
    """Each seed is a stage of its own, and the utility counts where it chooses what is handed on."""
    values = {key: value for key, value in _hashed(settings.ppo).items() if key != "seeds"}
    return {**values, "utility": settings.data.utility if settings.ppo.heldout.best_by == "utility" else None}


def _hashed(part: Any) -> dict[str, Any]:
    values = dataclasses.asdict(part)
    values["args"] = {k: v for k, v in values["args"].items() if k not in NOT_HASHED}
    return values
