"""What SFT, the reward model and PPO share: arguments that the pipeline sets, their check, callbacks, resuming."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, SchedulerType, Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from gpt2_rlhf.config import ppo_sizes
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.methods import LABELS
from gpt2_rlhf.config.ppo_sizes import Sizes
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import sharding
from gpt2_rlhf.launch.progress import Progress, SealCheckpoints, StopOnSignal
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.stage import TRAINED, Stage, manifest, newest_whole_checkpoint

get_checkpoint_conversion_mapping("gpt2")  # the first call takes 0.1 s, which each forked stage would spend on its own


def arguments(stage: Stage, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stage's TRL config: the user's choice, and those that only the pipeline sets (REFUSED).

    Without an accelerator training is in float32 whatever was chosen, so that settings for a GPU also run on a CPU.
    """
    no_accelerator = _no_accelerator()
    defaults: dict[str, Any] = {
        "dataloader_pin_memory": not no_accelerator,  # torch warns if there is no device to pin for
        "ddp_find_unused_parameters": False,  # every weight is used; a search for others costs time and warns
        "use_cpu": no_accelerator,  # otherwise several processes on CPUs would each train alone
    }
    own: dict[str, Any] = {
        "output_dir": str(stage.checkpoints_dir),
        "seed": stage.seed,
        "data_seed": stage.seed,
        "disable_tqdm": True,
    }
    if stage.inputs.get("sharded"):
        defaults |= sharding.arguments()
    if stage.name != "ppo" and chosen.get("save_total_limit") == 1:
        own["save_total_limit"] = 2  # transformers deletes the old checkpoint before the new one is flushed to the disk
    # activations that are on the CPU already cannot be moved there; PPOConfig has no such field
    of_accelerators = ["bf16", "fp16", *({"activation_offloading"} & chosen.keys())] if no_accelerator else []
    if chosen.get("bf16") is None:
        own["bf16"] = _precision(chosen) == "bfloat16"
    return {**defaults, **chosen, **own, **dict.fromkeys(of_accelerators, False)}


def prompt_sizes(settings: Settings, stage: Stage) -> Sizes:
    """Return how many prompts PPO or RLOO withholds and trains on, and PPO's batches; the data is ready."""
    prompts = manifest(stage.needs["data"])["metrics"]["tables"]["ppo"]["prompts"]
    return ppo_sizes.fit(settings.ppo, prompts, int(stage.inputs["processes"]))


def precisions(settings: Settings) -> dict[str, str]:
    """Return the type in which each stage trains on this machine: the user's choice, else bfloat16 where a GPU has it.

    It is not part of a stage's hash: the machine that plans a run may be another than the one that trains it.
    """
    names = [name for name in TRAINED if name not in LABELS or name == settings.method]
    return {name: _precision(settings.trained_by(name).args) for name in names}


def _precision(chosen: Mapping[str, Any]) -> str:
    if _no_accelerator():
        return "float32"
    if chosen.get("fp16"):
        return "float16"
    bf16 = chosen.get("bf16")
    if bf16 is None:
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if bf16 else "float32"


def _no_accelerator() -> bool:
    return torch.accelerator.current_accelerator(check_available=True) is None


def check(name: str, kind: Callable[..., TrainingArguments], given: Mapping[str, Any]) -> TrainingArguments:
    """Return a stage's config; refuse arguments that TRL or a tracker would refuse, before anything trains.

    It may initialise a GPU: call it in a process of its own. kind: the stage's config class.

    Raises:
        UserError: names the stage and what its config, optimizer, schedule or tracker does not allow.
    """
    try:
        config = kind(**given)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(f"{name}.args: {' '.join(str(error).split())}") from error
    _check_optimizer(name, config)
    try:
        for tracker in get_reporting_integration_callbacks(config.report_to):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{name}.args.report_to: {config.report_to}: {' '.join(str(error).split())}") from error
    return config


def _check_optimizer(name: str, config: TrainingArguments) -> None:
    """Refuse an optimizer or a schedule that transformers would refuse only once the models are loaded."""
    optim = OptimizerNames(config.optim).value
    if config.fsdp and optim not in sharding.OPTIMIZERS:
        expected = ", ".join(sharding.OPTIMIZERS)
        raise UserError(f"{name}.args.optim: {optim}: its state cannot be shared (launch.sharded); expected {expected}")
    try:
        Trainer.get_optimizer_cls_and_kwargs(config)
    except (ValueError, ImportError, NotImplementedError) as error:
        if "to pass a" not in str(error):  # LOMO and GaLore miss the model only, which is not loaded yet
            raise UserError(f"{name}.args.optim: {optim}: {' '.join(str(error).split())}") from error
    try:
        get_scheduler(
            config.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
            num_warmup_steps=config.get_warmup_steps(10),
            num_training_steps=10,
            scheduler_specific_kwargs=config.lr_scheduler_kwargs,  # type: ignore[arg-type]  # parsed if it was JSON
        )
    except (ValueError, TypeError) as error:
        schedule = SchedulerType(config.lr_scheduler_type).value
        raise UserError(
            f"{name}.args.lr_scheduler_type: {schedule}: {' '.join(str(error).split())}; set {name}.args."
            "lr_scheduler_kwargs, or choose another"
        ) from error


def say_precision(settings: Settings) -> None:
    """Print in which precision each stage trains on a GPU, or that half precision is set where there is none."""
    stages = settings.training.values()
    half = [name for name in ("bf16", "fp16") if any(part.args.get(name) for part in stages)]
    if not _no_accelerator():
        print(f"precision: {', '.join(f'{name} {kind}' for name, kind in precisions(settings).items())}", flush=True)
    elif half:
        print(f"{' and '.join(half)}: this machine has no GPU, so training runs in float32", flush=True)


def callbacks(stage: Stage) -> list[TrainerCallback]:
    """Return the callbacks of a stage: progress and metrics, sealed checkpoints, then stopping on a signal."""
    sealing = [] if stage.name == "ppo" else [SealCheckpoints()]  # our PPO seals its own
    return [Progress(stage.name, stage.directory / "metrics.jsonl"), *sealing, StopOnSignal()]


def config(kind: Callable[..., Any], stage: Stage, chosen: Mapping[str, Any]) -> Any:
    """Return the TRL config of SFT or a reward model, which train on the rows as they are; its trainer comes next."""
    made = kind(**arguments(stage, chosen), max_length=None)
    sharding.prepare(made)
    return made


def trained_model(trainer: Trainer, stage: Stage) -> tuple[torch.nn.Module | None, float]:
    """Train as `train` does; return the model, which only the first process has, and the seconds this took."""
    started = time.perf_counter()
    model = trainer.model
    assert model is not None  # transformers types a trainer's model as optional
    whole = sharding.whole_copy(model, torch.device("cpu")) if trainer.is_fsdp_enabled else None
    train(trainer, stage)
    if whole is not None:
        sharding.gather(model, whole)
        model = whole
    return (model if trainer.is_world_process_zero() else None), time.perf_counter() - started


def train(trainer: Trainer, stage: Stage) -> None:
    """Train to the end, from the newest whole checkpoint if there is one; damaged ones are set aside."""
    trainer.remove_callback(PrinterCallback)  # transformers adds it if its own progress bar is off
    first = trainer.is_world_process_zero()
    # a network disk may show another process other checkpoints
    found: list[Any] = [newest_whole_checkpoint(stage, trainer.accelerator.num_processes) if first else None]
    broadcast_object_list(found)
    checkpoint, damaged = found[0]
    if first:
        for path, wrong in damaged.items():
            print(f"  {path.name}: {wrong}; it is kept as {digests.set_aside(path).name}", flush=True)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
