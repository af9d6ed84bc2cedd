"""Turn a PPO run's state into a folder `checkpoint-N` and back, so that a killed run can go on to the same weights.

The folder appears under that name only when it is whole: it is written beside, under another name, and renamed. That
withstands a kill at any moment (not a power cut: nothing is flushed to the disk). It holds the policy as
`from_pretrained` reads it (or its adapter), the value model likewise in `value_model/`, optimizer, scheduler, the
random generators of each process, the KL coefficient in `ppo.json`, and `trainer_state.json`, whose step is also the
position in the prompts.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState
from transformers.utils import logging
from trl.experimental.ppo.ppo_trainer import OnlineTrainerState

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store.files import write_json

if TYPE_CHECKING:
    from gpt2_rlhf.ppo_trainer.trainer import RepairedPPOTrainer

_STATE = "trainer_state.json"
_OPTIMIZER = "optimizer.pt"
_SCHEDULER = "scheduler.pt"
_PPO = "ppo.json"  # what trainer_state.json has no place for
_VALUE_MODEL = "value_model"
_PARTIAL = ".partial-checkpoint"


def save(trainer: "RepairedPPOTrainer") -> None:
    """Write `checkpoint-N` for the update just done, then remove the oldest beyond `save_total_limit`, but the best.

    Called by every process; returns when the checkpoint is whole.
    """
    run_dir = trainer.run_dir
    step = trainer.state.global_step
    partial, whole = run_dir / f"{_PARTIAL}-{step}", run_dir / f"checkpoint-{step}"
    writer = trainer.args.should_save
    if writer:
        for leftover in run_dir.glob(f"{_PARTIAL}-*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    trainer._save_rng_state(str(partial))
    trainer.save_model(str(partial), _internal_call=True)
    if writer:
        write_model(trainer.value_model, partial / _VALUE_MODEL)
        torch.save(trainer.optimizer.state_dict(), partial / _OPTIMIZER)
        torch.save(trainer.lr_scheduler.state_dict(), partial / _SCHEDULER)
        write_json(partial / _PPO, {"kl_coef": trainer.kl_coef, "forced": trainer.forced})
        stateful: Any = trainer.state.stateful_callbacks
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                stateful[type(callback).__name__] = callback.state()
        trainer.state.save_to_json(str(partial / _STATE))
    trainer.accelerator.wait_for_everyone()  # for the generators of the other processes
    if writer:
        if whole.exists():  # left by a run that this one resumed an earlier checkpoint of
            shutil.rmtree(whole)
        partial.rename(whole)
        _remove_oldest(run_dir, step, trainer.args.save_total_limit, trainer.best_update)
    trainer.accelerator.wait_for_everyone()


def check(checkpoint: Path, batch_size: int, processes: int) -> None:
    """Refuse a folder that this run cannot go on from.

    Raises:
        UserError: not a whole checkpoint, or of a run with other batches or another number of processes.
    """
    if not (checkpoint / _STATE).is_file():
        raise UserError(f"ppo: {checkpoint} is not a whole checkpoint (no {_STATE}); name another, or start anew")
    state = _read_state(checkpoint)
    saved_batch = state.episode // state.global_step
    saved_processes = len(list(checkpoint.glob("rng_state*.pth")))
    if (saved_batch, saved_processes) != (batch_size, processes):
        raise UserError(
            f"ppo: {checkpoint} was saved with {saved_batch} episodes per update on {saved_processes} processes, this "
            f"run has {batch_size} on {processes}; resume with the same arguments and processes, or start anew"
        )


def load(trainer: "RepairedPPOTrainer", checkpoint: Path) -> None:
    """Restore weights, optimizer, scheduler and counters in place; the random generators are left to the caller."""
    load_policy(trainer.policy_model, checkpoint)
    load_model(trainer.value_model, checkpoint / _VALUE_MODEL / "model.safetensors")
    trainer.optimizer.load_state_dict(torch.load(checkpoint / _OPTIMIZER, "cpu", weights_only=True))
    trainer.lr_scheduler.load_state_dict(torch.load(checkpoint / _SCHEDULER, "cpu", weights_only=True))
    saved = _read_state(checkpoint)
    trainer.state.global_step = saved.global_step
    trainer.state.episode = saved.episode
    trainer.state.epoch = saved.epoch
    trainer.state.log_history = saved.log_history
    stateful: Any = saved.stateful_callbacks
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState) and type(callback).__name__ in stateful:
            for name, value in stateful[type(callback).__name__]["attributes"].items():
                setattr(callback, name, value)
    own = json.loads((checkpoint / _PPO).read_text(encoding="utf-8"))
    trainer.kl_coef, trainer.forced = own["kl_coef"], own["forced"]


def load_policy(policy: PreTrainedModel | PeftModel, checkpoint: Path) -> None:
    """Restore the policy's weights, or its adapter's, in place."""
    if isinstance(policy, PeftModel):
        set_peft_model_state_dict(policy, load_peft_weights(str(checkpoint)))
    else:
        load_model(policy, checkpoint / "model.safetensors")


def write_model(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Save weights and configuration without transformers' progress bar, one for each file."""
    bars_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(str(directory))
    finally:
        if bars_shown:
            logging.enable_progress_bar()


def _read_state(checkpoint: Path) -> OnlineTrainerState:
    state = OnlineTrainerState.load_from_json(str(checkpoint / _STATE))
    assert isinstance(state, OnlineTrainerState)
    return state


def _remove_oldest(run_dir: Path, newest_step: int, limit: int | None, best_step: int | None) -> None:
    """Keep the newest `limit` checkpoints up to `newest_step`, and that of `best_step`; none or 0 keeps all."""
    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in run_dir.glob("checkpoint-*"))
    if limit:
        for step in [step for step in steps if step <= newest_step][:-limit]:
            if step != best_step:
                shutil.rmtree(run_dir / f"checkpoint-{step}")
