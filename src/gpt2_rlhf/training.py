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

from gpt2_rlhf import launch, models, ppo_checks
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.ppo_trainer import PPOConfig
from gpt2_rlhf.progress import Progress, StopOnSignal
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage, manifest


def arguments(settings: Settings, stage: Stage, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stage's TRL config: what the user chose, and what is the pipeline's to set (config.REFUSED).

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


def check_arguments(settings: Settings, stage: Stage) -> None:
    """Refuse what TRL itself would refuse, for all three stages before the first of them trains; say what is changed.

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
        for tracker in get_reporting_integration_callbacks(config.report_to):
            try:
                tracker()
            except (RuntimeError, ImportError) as error:
                raise UserError(f"{name}.args.report_to: {config.report_to}: {' '.join(str(error).split())}") from error
    ppo_config = PPOConfig(**ppo_arguments(settings, stage))
    prompts = manifest(stage.needs["data"])["metrics"]["tables"]["ppo"]["prompts"]
    heldout = settings.ppo.withheld_prompts
    if heldout >= prompts:
        raise UserError(
            f"ppo.heldout.prompts: {heldout} of {prompts} PPO prompts leave none to train on; lower it, give more "
            "pairs, or set ppo.args.eval_strategy=no"
        )
    ppo_checks.check(ppo_config, prompts - heldout, processes)
    asked = [
        name
        for name in ("bf16", "fp16")
        if any(chosen.get(name) for chosen in (settings.sft.args, settings.reward.args, settings.ppo.args))
    ]
    if asked and _no_accelerator():
        print(f"{' and '.join(asked)}: this machine has no GPU, so training runs in float32", flush=True)


def ppo_arguments(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The fields of PPOConfig: answers end with EOS, and no samples are drawn that would change the random state."""
    own = {"stop_token": "eos", "num_sample_generations": 0}
    chosen = {"bf16": False, **settings.ppo.args}  # TRL's own default is true, and PPO honours it
    return {**arguments(settings, stage, chosen), **own}


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
