"""What the three training stages share: the arguments the pipeline sets, the callbacks, the hand-over on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch.progress import Progress, StopOnSignal
from gpt2_rlhf.store.stage import Stage


def arguments(stage: Stage, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage's TRL config: what the user chose, and what is the pipeline's to set (REFUSED).

    On a machine without an accelerator training is in float32, whatever was chosen: settings made for a GPU run there.
    """
    no_accelerator = _no_accelerator()
    defaults = {
        "dataloader_pin_memory": not no_accelerator,  # pinning for no device warns
        "ddp_find_unused_parameters": False,  # every weight is used; looking for others costs time and warns
        "use_cpu": no_accelerator,  # without it, several processes on CPUs would each train alone
    }
    own = {
        "output_dir": str(stage.checkpoints_dir),
        "seed": stage.seed,
        "data_seed": stage.seed,
        "disable_tqdm": True,
    }
    precision = {"bf16": False, "fp16": False} if no_accelerator else {}
    return {**defaults, **chosen, **own, **precision}


def _no_accelerator() -> bool:
    return torch.accelerator.current_accelerator(check_available=True) is None


def check(name: str, kind: Callable[..., TrainingArguments], given: Mapping[str, Any]) -> None:
    """Refuse what TRL or a tracker would refuse of a stage's arguments, before anything trains.

    It may look for a GPU: call it in a process of its own. kind: the TRL config class of the stage `name`.

    Raises:
        UserError: names the stage and what its config or its trackers do not allow.
    """
    try:
        config = kind(**given)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{name}.args: {' '.join(str(error).split())}") from error
    for tracker in get_reporting_integration_callbacks(config.report_to):
        try:
            tracker()
        except (RuntimeError, ImportError) as error:
            raise UserError(f"{name}.args.report_to: {config.report_to}: {' '.join(str(error).split())}") from error


def say_if_float32(settings: Settings) -> None:
    """Print a line if half precision is asked for on a machine that trains in float32."""
    stages = (settings.sft.args, settings.reward.args, settings.ppo.args)
    asked = [name for name in ("bf16", "fp16") if any(chosen.get(name) for chosen in stages)]
    if asked and _no_accelerator():
        print(f"{' and '.join(asked)}: this machine has no GPU, so training runs in float32", flush=True)


def callbacks(stage: Stage) -> list[TrainerCallback]:
    """Progress and metrics, then stopping on a signal."""
    return [Progress(stage.name, stage.directory / "metrics.jsonl"), StopOnSignal()]


def train(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint where there is one."""
    trainer.remove_callback(PrinterCallback)  # transformers adds it where its own progress bar is off
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"  resuming from {checkpoint}", flush=True)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
