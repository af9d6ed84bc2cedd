"""What the three training stages share: the arguments the pipeline sets, the callbacks, the hand-over on disk."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from gpt2_rlhf import launch, models, ppo_trainer
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.ppo_trainer import PPOConfig
from gpt2_rlhf.progress import Progress, StopOnSignal
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage, manifest


def arguments(settings: Settings, stage: Stage, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage's TRL config: what the user chose, and what is the pipeline's to set (config.REFUSED)."""
    no_accelerator = torch.accelerator.current_accelerator(check_available=True) is None
    defaults = {
        "dataloader_pin_memory": not no_accelerator,  # pinning for no device warns
        "ddp_find_unused_parameters": False,  # every weight is used; looking for others costs time and warns
        "use_cpu": no_accelerator,  # without it, several processes on CPUs would each train alone
    }
    own = {
        "output_dir": str(stage.checkpoints_dir),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "disable_tqdm": True,
    }
    return {**defaults, **chosen, **own}


def check_arguments(settings: Settings, stage: Stage) -> None:
    """Refuse what TRL itself would refuse, for all three stages before the first of them trains.

    Builds their configs, which may look for a GPU: call it in a process of its own. stage: the PPO stage, whose data
    is ready.

    Raises:
        UserError: names the stage and what its config, its trackers or its batch sizes do not allow.
    """
    processes = launch.processes(settings)
    launch.leave()
    configs = {
        "sft": (SFTConfig, arguments(settings, stage, settings.sft.args)),
        "reward": (RewardConfig, arguments(settings, stage, settings.reward.args)),
        "ppo": (PPOConfig, ppo_arguments(settings, stage)),
    }
    for name, (kind, given) in configs.items():
        try:
            config = kind(**given)
        except (ValueError, TypeError, ImportError) as error:
            raise UserError(f"{name}.args: {' '.join(str(error).split())}") from error
        if config.use_cpu and (config.bf16 or config.fp16):
            raise UserError(
                f"{name}.args.bf16, fp16: this machine has no GPU, and a CPU trains in float32; set both false"
            )
        for tracker in get_reporting_integration_callbacks(config.report_to):
            try:
                tracker()
            except (RuntimeError, ImportError) as error:
                raise UserError(f"{name}.args.report_to: {config.report_to}: {' '.join(str(error).split())}") from error
    prompts = manifest(stage.needs["data"])["metrics"]["tables"]["ppo"]["prompts"]
    ppo_trainer.check(PPOConfig(**ppo_arguments(settings, stage)), prompts, processes)


def ppo_arguments(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The fields of PPOConfig: answers end with EOS, and no samples are drawn that would change the random state."""
    own = {"stop_token": "eos", "num_sample_generations": 0, "bf16": False}
    return {**arguments(settings, stage, settings.ppo.args), **own}


def callbacks(stage: Stage) -> list[TrainerCallback]:
    """Progress and metrics, then stopping on a signal."""
    return [Progress(stage.name, stage.directory / "metrics.jsonl"), StopOnSignal()]


def train(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint where there is one."""
    trainer.remove_callback(PrinterCallback)  # transformers adds it where its own progress bar is off
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"  resuming from {checkpoint}", flush=True)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def save(model: Any, tokenizer: PreTrainedTokenizerBase, directory: Path) -> PreTrainedModel:
    """Write a trainer's model, adapters merged, with the tokenizer of the token contract; returns what was written."""
    whole = models.merged(model)
    whole.save_pretrained(directory)
    copy.deepcopy(tokenizer).save_pretrained(directory)
    return whole
