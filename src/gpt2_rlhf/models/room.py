"""Estimate the disk space that training needs, so that a run that would fill the disk is refused before it trains.

The most is there when a stage writes its last checkpoint, while the oldest one still exists, or its model. The models
of the stages before it are there too, and in PPO the checkpoint of the best policy beside the newest ones.
"""

import math
from collections.abc import Sequence

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from gpt2_rlhf.config import methods
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.config.system_faults import free_bytes, largest_file
from gpt2_rlhf.models import shape
from gpt2_rlhf.models.durations import updates
from gpt2_rlhf.store.stage import Stage, manifest

Plan = Sequence[tuple[Stage, TrainingArguments]]  # the stages that train, in order, each with its TRL config

_NUMBER = 4  # bytes of a float32
_SMALL_BYTES = 10_000_000  # tokenizers, rows, samples, pictures and the report


def require(settings: Settings, plan: Plan) -> None:
    """Refuse stages whose files will not fit on the disk; those that are there already count as fitted.

    Raises:
        UserError: names the free space and what is needed, or the limit on the size of a file.
    """
    place = plan[0][0].directory.parent
    there = sum(file.stat().st_size for stage, _ in plan for file in stage.directory.rglob("*") if file.is_file())
    needed, free = peak_bytes(settings, plan) - there, free_bytes(place)
    if free < needed:
        raise UserError(
            f"output_dir: {place}: {free / 1e6:,.0f} MB free, but {', '.join(stage.name for stage, _ in plan)} need up "
            f"to {needed / 1e6:,.0f} MB; make room, set output_dir=<a folder on a larger disk>, or save fewer "
            "checkpoints with save_steps or save_total_limit"
        )
    largest, limit = max(_optimizer_bytes(settings, *one) for one in plan), largest_file()
    if limit is not None and limit < largest:
        raise UserError(
            f"`ulimit -f` allows files of {limit / 1e6:,.1f} MB, but the optimizer in a checkpoint has "
            f"{largest / 1e6:,.1f} MB; raise that limit"
        )


def peak_bytes(settings: Settings, plan: Plan) -> int:
    """Return about how many bytes these stages need at once, built one after the other."""
    model, peak = shape.of(settings.model), 0
    model_bytes = _NUMBER * model.weights
    for before, (stage, config) in enumerate(plan):
        checkpoint_bytes = _trained_bytes(settings, stage) + _optimizer_bytes(settings, stage, config)
        if settings.launch.sharded and stage.name == "sft" and settings.sft.peft.r == 0 and model.is_tied:
            checkpoint_bytes += _NUMBER * model.vocabulary * model.width  # shares hold it under both of its names
        saved, limit = _saves(settings, stage, config), config.save_total_limit or math.inf
        best = stage.name == "ppo" and settings.ppo.withheld_prompts > 0  # kept beside the newest ones
        writes_checkpoint = (min(saved, limit + 1) + best) * checkpoint_bytes
        writes_model = (min(saved, limit) + best) * checkpoint_bytes + model_bytes
        peak = max(peak, before * model_bytes + int(max(writes_checkpoint, writes_model)))
    return peak + _SMALL_BYTES


def _trained_bytes(settings: Settings, stage: Stage) -> int:
    """Return the size of the weights in a checkpoint: with LoRA those of the adapter; in PPO the critic's as well."""
    model = shape.of(settings.model)
    is_scorer = stage.name in ("reward", "judge")
    trained = model.trained(settings.trained_by(stage.name).peft, model.reward_weights if is_scorer else model.weights)
    return _NUMBER * (trained + (model.reward_weights if stage.name == "ppo" else 0))


def _optimizer_bytes(settings: Settings, stage: Stage, config: TrainingArguments) -> int:
    optim = OptimizerNames(config.optim).value
    has_moments = optim.startswith("adamw") and "bit" not in optim  # the other optimizers keep less
    return 2 * _trained_bytes(settings, stage) if has_moments else 0


def _saves(settings: Settings, stage: Stage, config: TrainingArguments) -> int:
    """Return how many checkpoints the stage writes by its `save_strategy`, that of the last step included."""
    if config.save_strategy == "no":
        return 0
    if config.save_strategy == "epoch":
        return math.ceil(config.num_train_epochs)
    if config.save_steps < 1:
        return math.ceil(1 / config.save_steps)
    rows = manifest(stage.needs["data"])["metrics"]["tables"][methods.table_of(stage.name)]["pairs"]
    steps = updates(stage.name, settings, rows, int(stage.inputs["processes"]))
    return math.ceil(steps / config.save_steps)
