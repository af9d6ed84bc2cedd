"""Write the state of a PPO run to a folder `checkpoint-N` and read it back, so that a killed run resumes exactly.

A checkpoint is written under another name, flushed to the disk, sealed with the sizes and hashes of its files, and
then renamed, so neither a kill nor a power cut leaves one that counts and is not whole. It holds the policy as
`from_pretrained` reads it (or its adapter), the value model likewise in `value_model/`, optimizer, scheduler, the
random generators of each process, the KL coefficient and fp16's loss scale in `ppo.json`, the measurements on held-out
prompts in `heldout/`, and `trainer_state.json`, whose step is also the position in the prompts.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState
from transformers.utils import logging
from trl.experimental.ppo import PPOTrainer

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import read_json, write_json

_STATE = "trainer_state.json"
_SCHEDULER = "scheduler.pt"
_PPO = "ppo.json"  # what trainer_state.json has no field for
_VALUE_MODEL = "value_model"
_PARTIAL = ".partial-checkpoint"


@contextmanager
def written_whole(trainer: PPOTrainer) -> Iterator[Path]:
    """Yield a folder that becomes `checkpoint-N` when all processes have left the block without an error."""
    run_dir, step, is_writer = Path(str(trainer.args.output_dir)), trainer.state.global_step, trainer.args.should_save
    partial, whole = run_dir / f"{_PARTIAL}-{step}", run_dir / f"checkpoint-{step}"
    if is_writer:
        for leftover in run_dir.glob(f"{_PARTIAL}-*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    trainer.accelerator.wait_for_everyone()
    yield partial
    trainer.accelerator.wait_for_everyone()  # every process writes its random generators
    if is_writer:
        digests.seal(partial)
        if whole.exists():  # of a run that continued after the checkpoint this run resumed from
            shutil.rmtree(whole)
        partial.rename(whole)
        digests.flush(run_dir)


def write(trainer: PPOTrainer, own: Mapping[str, Any], folder: Path) -> None:
    """Write all but random generators and optimizer to an existing folder; `own` goes to `ppo.json`."""
    scaler = trainer.accelerator.scaler  # of the loss, in fp16, else None
    write_model(trainer.policy_model, folder)
    write_model(trainer.value_model, folder / _VALUE_MODEL)
    torch.save(trainer.lr_scheduler.state_dict(), folder / _SCHEDULER)
    write_json(folder / _PPO, {**own, "scaler": scaler and scaler.state_dict()})
    stateful: Any = trainer.state.stateful_callbacks
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState):
            stateful[type(callback).__name__] = callback.state()
    trainer.state.save_to_json(str(folder / _STATE))


def check(checkpoint: Path, batch_size: int, processes: int, optimizer_file: str) -> None:
    """Raise a UserError unless this is a whole checkpoint of a run of this batch size, processes and sharding."""
    if (fault := digests.seal_fault(checkpoint)) is not None:
        raise UserError(
            f"ppo: {checkpoint} is not a whole checkpoint: {fault}; give another folder, or start without one"
        )
    state = read_json(checkpoint / _STATE)
    saved_batch = state["episode"] // state["global_step"]
    saved_processes = len(list(checkpoint.glob("rng_state*.pth")))
    if (saved_batch, saved_processes) != (batch_size, processes):
        raise UserError(
            f"ppo: {checkpoint} was saved with {saved_batch} episodes per update on {saved_processes} processes, this "
            f"run has {batch_size} on {processes}; resume with the same arguments and processes, or start without it"
        )
    if not (checkpoint / optimizer_file).is_file():
        raise UserError(f"ppo: {checkpoint} has no {optimizer_file}; resume with the same args.fsdp, or start anew")


def load_best(policy: PreTrainedModel | PeftModel, run_dir: Path, update: int) -> None:
    """Restore the policy of an earlier update, from the checkpoint that was kept for it.

    Raises:
        UserError: it is damaged. The checkpoints since then are set aside, so that the next run trains it again.
    """
    if (fault := digests.seal_fault(run_dir / f"checkpoint-{update}")) is not None:
        for step in _steps(run_dir):
            if step >= update:
                digests.set_aside(run_dir / f"checkpoint-{step}")
        raise UserError(
            f"ppo: checkpoint-{update}, the policy to hand on, is damaged: {fault}; run the same command again, which "
            f"trains it again (set aside in {run_dir})"
        )
    load_policy(policy, run_dir / f"checkpoint-{update}")


def load(trainer: PPOTrainer, checkpoint: Path, optimizer_file: str) -> dict[str, Any]:
    """Restore all but the random generators, and return what `write` got as `own`."""
    load_policy(trainer.policy_model, checkpoint)
    _load_weights(trainer.value_model, checkpoint / _VALUE_MODEL)
    for file, part in ((optimizer_file, trainer.optimizer), (_SCHEDULER, trainer.lr_scheduler)):
        part.load_state_dict(torch.load(checkpoint / file, "cpu", weights_only=True))
    saved, own = read_json(checkpoint / _STATE), read_json(checkpoint / _PPO)
    for name in ("global_step", "episode", "epoch", "log_history"):
        setattr(trainer.state, name, saved[name])
    stateful = saved["stateful_callbacks"]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ExportableState) and type(callback).__name__ in stateful:
            for name, value in stateful[type(callback).__name__]["attributes"].items():
                setattr(callback, name, value)
    if trainer.accelerator.scaler is not None and own["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(own["scaler"])
    return own


def load_policy(policy: PreTrainedModel | PeftModel, checkpoint: Path) -> None:
    """Restore the policy's weights, or its adapter's, in place."""
    if isinstance(policy, PeftModel):
        set_peft_model_state_dict(policy, load_peft_weights(str(checkpoint)))
    else:
        _load_weights(policy, checkpoint)


def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Restore a model's weights in place through its class, which knows under which names they are saved."""
    with _no_progress_bar():
        loaded: Any = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    saved, found = loaded
    faults = {fault: len(names) for fault, names in found.items() if names}
    if faults:
        raise UserError(f"ppo: {folder}: expected the weights of a {type(model).__name__}: {faults}; start without it")
    model.load_state_dict(saved.state_dict())


def write_model(model: PreTrainedModel | PeftModel, directory: Path) -> None:
    """Save weights and configuration."""
    with _no_progress_bar():
        model.save_pretrained(str(directory))


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Within the block, transformers shows no progress bar, as it does for each file of weights."""
    bars_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars_shown:
            logging.enable_progress_bar()


def remove_oldest(run_dir: Path, newest_step: int, limit: int | None, best_step: int | None) -> None:
    """Keep the newest `limit` checkpoints up to `newest_step`, and that of `best_step`; None or 0 keeps all."""
    if limit:
        for step in [step for step in _steps(run_dir) if step <= newest_step][:-limit]:
            if step != best_step:
                shutil.rmtree(run_dir / f"checkpoint-{step}")


def _steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run_dir.glob("checkpoint-*"))
