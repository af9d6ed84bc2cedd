"""Build one stage in this process: run its step, and write the manifest that says it is done."""

import logging
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import child, world
from gpt2_rlhf.store.digests import digest
from gpt2_rlhf.store.stage import TRAINED, Outcome, Stage, write_manifest

_LIBRARIES = ("trl", "transformers", "torch", "accelerate", "datasets", "peft", "huggingface_hub", "hydra-core")


def build(step: Callable[[Settings, Stage], Outcome], settings: Settings, stage: Stage) -> None:
    """Run the step of a stage, write its manifest, and delete its checkpoints."""
    started, started_at = time.perf_counter(), datetime.now(UTC)
    stage.directory.mkdir(parents=True, exist_ok=True)
    child.log_path(stage.directory, world.rank()).unlink(missing_ok=True)  # of an earlier try
    _quiet_libraries(stage)
    # transformers would write below the checkpoints, which are deleted when the stage is done
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(stage.directory / "tensorboard"))
    outcome = step(settings, stage)
    if world.rank() == 0:
        write_manifest(stage, _manifest(settings, stage, outcome, started, started_at))
        shutil.rmtree(stage.checkpoints_dir, ignore_errors=True)


def _manifest(
    settings: Settings, stage: Stage, outcome: Outcome, started: float, started_at: datetime
) -> dict[str, Any]:
    finished_at, wall_s = datetime.now(UTC), time.perf_counter() - started
    peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    import torch  # after what is measured, since a stage that trains nothing has not imported these

    from gpt2_rlhf.launch import training

    return {
        "stage": stage.name,
        "directory": stage.directory.name,
        "inputs": stage.inputs,
        "seed": stage.inputs.get("seed", settings.seed),
        "started_at": f"{started_at:%Y-%m-%d %H:%M:%S} UTC",
        "finished_at": f"{finished_at:%Y-%m-%d %H:%M:%S} UTC",
        "wall_s": wall_s,
        "work_s": outcome.work_s,
        "peak_rss_mib": peak_rss_mib,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": training.precisions(settings).get(stage.name),  # None for a stage that trains nothing
        "report_to": settings.trained_by(stage.name).args["report_to"] if stage.name in TRAINED else None,
        "platform": platform.platform(),
        "cpus": world.cores(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "git_commit": _git_commit(),
        "weights_sha256": {path.name: digest(path) for path in sorted(stage.model_dir.glob("*.safetensors"))},
        "metrics": outcome.metrics,
    }


def _git_commit() -> str | None:
    """Return the commit of this project's checkout, or None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _quiet_libraries(stage: Stage) -> None:
    """Keep the terminal free for the progress line: warnings of libraries go to a file in the stage's directory."""
    import datasets
    import transformers

    logging.captureWarnings(True)
    log = stage.directory / world.log_name("warnings", world.rank())
    logging.getLogger("py.warnings").addHandler(logging.FileHandler(log, delay=True))
    logging.getLogger("py.warnings").propagate = False

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
