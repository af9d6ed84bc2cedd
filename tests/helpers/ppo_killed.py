"""Run by test_ppo_killed.py with DIRECTORY and SEED: kill -9 PPO runs at random updates, resume them, compare weights.

Each run is a process group of its own, forked from this process, which has imported TRL once; two processes are started
by torchrun's own launcher. Prints a line of JSON by kind of run: where it was killed, what it resumed from, and the
digests of policy and critic, of the killed and of an uninterrupted run.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from helpers import ppo_tiny as tiny

UPDATES, KILLS = 14, 5
KINDS = ("full", "lora", "two processes")


class Tell(TrainerCallback):
    """Leaves the number of the newest update in a file."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.file.write_text(str(state.global_step))
        time.sleep(0.05)  # so that the killer is not too late


def train(kind: str, directory: Path) -> None:
    """Go on from the newest checkpoint to the end, and leave the digest."""
    torch.set_num_threads(1)
    gc.collect = lambda *_: 0  # TRL collects garbage twice an update, 0.3 s to 0.1 s of training
    args = tiny.arguments(
        directory / "checkpoints",
        gradient_accumulation_steps=1 if kind == "two processes" else 2,  # 4 rollouts an update in each
        total_episodes=4 * UPDATES,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=3,
    )
    lora = LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM) if kind == "lora" else None
    trainer = tiny.ours(
        args, peft_config=lora, watch=tiny.watch(directory / "heldout"), callbacks=[Tell(directory / "update")]
    )
    (directory / "checkpoints").mkdir(exist_ok=True)
    newest = get_last_checkpoint(str(directory / "checkpoints"))
    if trainer.is_world_process_zero():
        (directory / "resumed_from").write_text("nothing" if newest is None else Path(newest).name)
    trainer.train(newest)
    if trainer.is_world_process_zero():
        (directory / "digest").write_text(tiny.trained_digest(trainer))


def start(kind: str, directory: Path) -> int:
    """The process id of a run's leader, whose group holds all its processes."""
    directory.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    os.setsid()
    status = 1
    try:
        if kind == "two processes":
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=2,
                run_id=str(os.getpid()),
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                start_method="fork",
                max_restarts=0,
            )
            elastic_launch(config, train)(kind, directory)
        else:
            train(kind, directory)
        status = 0
    finally:
        os._exit(status)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a run ended with status {status}"


def kill_at(child: int, directory: Path, update: int, after_s: float) -> None:
    """Kill the whole group a moment after this update."""
    wait_until(lambda: reached(directory) >= update)
    time.sleep(after_s)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def reached(directory: Path) -> int:
    file = directory / "update"
    text = file.read_text() if file.exists() else ""
    return int(text or 0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "a run hangs"
        time.sleep(0.005)


def compare(kind: str, directory: Path, chance: random.Random) -> dict[str, Any]:
    straight, killed = directory / "straight", directory / "killed"
    finish(start(kind, straight))
    updates = sorted(chance.sample(range(1, UPDATES), KILLS))
    resumed_from = []
    for update in updates:
        child = start(kind, killed)
        kill_at(child, killed, update, chance.uniform(0, 0.1))
        resumed_from.append((killed / "resumed_from").read_text())
    finish(start(kind, killed))
    resumed_from.append((killed / "resumed_from").read_text())
    return {
        "kind": kind,
        "killed_at": updates,
        "resumed_from": resumed_from[1:],
        "killed": (killed / "digest").read_text(),
        "straight": (straight / "digest").read_text(),
    }


if __name__ == "__main__":
    for place, one in enumerate(KINDS):
        folder = Path(sys.argv[1]) / one.replace(" ", "-")
        print(json.dumps(compare(one, folder, random.Random(int(sys.argv[2]) + place))), flush=True)
