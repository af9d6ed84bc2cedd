"""What tests have each of two processes do; each writes what it found as NAME-RANK.json into a folder."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from gpt2_rlhf.ppo_trainer import checkpoints
from helpers import commands
from helpers import ppo_tiny as tiny


def found(action: Callable[[Path], dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """Return what the action returns in each of two processes."""
    done = commands.call(write, action, directory, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((directory / f"{action.__name__}-{rank}.json").read_text()) for rank in (0, 1)]


def write(action: Callable[[Path], dict[str, Any]], directory: Path) -> None:
    """Call the action, and write what it returns."""
    torch.set_num_threads(1)
    (directory / f"{action.__name__}-{os.environ['RANK']}.json").write_text(json.dumps(action(directory)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def arguments(directory: Path, **changes: Any) -> Any:
    # 12 prompts, 4 rollouts per update over 2 processes: 3 updates in a pass; checkpoints inside a pass
    return tiny.arguments(
        directory,
        **{
            "gradient_accumulation_steps": 1,
            "total_episodes": 20,
            "save_strategy": "steps",
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            **changes,
        },
    )


def lora() -> LoraConfig:
    return LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)


def failure(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def stock(directory: Path) -> dict[str, str]:
    trainer = tiny.stock(tiny.arguments(directory, gradient_accumulation_steps=1, total_episodes=4))
    saved = failure(lambda: trainer.save_model(str(directory / "model")))
    with_lora = tiny.stock(arguments(directory), peft_config=lora())
    return {"save": saved, "lora": failure(with_lora.train)}


def whole(directory: Path) -> dict[str, Any]:
    """Run without interruption with all weights and with an adapter; interrupt and resume a run with an adapter."""
    full = tiny.ours(arguments(directory / "full"), watch=tiny.watch(directory / "full-heldout"))
    full.train()
    full.save_model(str(directory / "model"))
    full.accelerator.wait_for_everyone()

    class Stop(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    adapter = tiny.ours(arguments(directory / "lora"), peft_config=lora())
    adapter.train()
    stopped = tiny.ours(arguments(directory / "stopped"), peft_config=lora(), callbacks=[Stop()])
    try:
        stopped.train()
    except KeyboardInterrupt:
        stopped.accelerator.wait_for_everyone()
    resumed = tiny.ours(arguments(directory / "stopped"), peft_config=lora())
    resumed.train(get_last_checkpoint(str(directory / "stopped")))
    return {
        "full": tiny.trained_digest(full),
        "steps": full.state.global_step,
        "best": full.best_update,
        "reloaded": tiny.digest(GPT2LMHeadModel.from_pretrained(directory / "model")),
        "lora": tiny.trained_digest(adapter),
        "lora_stopped_at": stopped.state.global_step,
        "lora_resumed": tiny.trained_digest(resumed),
        "first_prompt": full.prompts[0],
    }


def sharded(directory: Path) -> dict[str, Any]:
    """Train 3 updates data parallel and with shares; return what both logged, how they differ, what a process holds."""
    both: dict[str, Any] = {}
    for name, parts in {"full": {}, "lora": {"peft_config": lora()}}.items():
        runs: list[Any] = []
        for way in ("whole", "shares"):
            folder = directory / name / way
            args = arguments(folder, gradient_accumulation_steps=2, total_episodes=24, fsdp=way == "shares")
            runs.append(tiny.ours(args, watch=tiny.watch(folder / "heldout"), **parts))
            runs[-1].train()
        whole, shares = (
            torch.cat([one.flatten() for model in (run.policy_model, run.value_model) for one in model.parameters()])
            for run in runs
        )
        both[name] = {
            "logged": [run.state.log_history for run in runs],
            "difference": float((shares - whole).norm() / whole.norm()),
            "digest": tiny.trained_digest(runs[1]),
            "numbers": len(whole),
            "held": sum(one.to_local().numel() for one in runs[1].model.parameters()),
        }
    return both


def killed(directory: Path) -> None:
    """Kill this process while it writes the second checkpoint."""
    write = checkpoints.write_model

    def write_or_die(model: Any, folder: Path) -> None:
        write(model, folder)
        if "checkpoint-4" in str(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.write_model = write_or_die
    tiny.ours(arguments(directory / "killed"), watch=tiny.watch(directory / "killed-heldout")).train()


def resumed(directory: Path) -> dict[str, Any]:
    checkpoint = get_last_checkpoint(str(directory / "killed"))
    trainer = tiny.ours(arguments(directory / "killed"), watch=tiny.watch(directory / "killed-heldout"))
    trainer.train(checkpoint)
    return {"from": Path(str(checkpoint)).name, "full": tiny.trained_digest(trainer), "best": trainer.best_update}


def steps(directory: Path) -> dict[str, Any]:
    """Take one step on 4 rollouts of each process, split in three ways, and save the gradients."""
    logged = {}
    for rows, accumulation in ((4, 1), (2, 2), (1, 4)):
        gradient, logged[rows] = tiny.gradient_of_one_step(directory, rows, accumulation)
        torch.save(gradient, directory / f"gradient-{rows}-{os.environ['RANK']}.pt")
    return logged
