"""Kill PPO runs with SIGKILL at random updates, resume them, and compare their weights with those of undisturbed runs.

Each run is a process group, forked from this process, which has imported TRL once; torchrun's launcher starts the runs
of two processes. Prints a line of JSON for each kind of run: at which updates it was killed, what it resumed from, and
the digests of policy and critic of the killed and of an uninterrupted run.
"""

import gc
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from helpers import commands
from helpers import ppo_tiny as tiny

UPDATES = 10
KINDS = {"full": 5, "lora": 5, "two processes": 5, "two processes with shares": 2}  # and how often each is killed


class Tell(TrainerCallback):
    """Writes the number of the newest update to a file."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.file.write_text(str(state.global_step))
        time.sleep(0.05)  # so that the kill comes before the end


def train(kind: str, directory: Path) -> None:
    """Train from the newest checkpoint to the end, and write the digest."""
    torch.set_num_threads(1)
    gc.collect = lambda *_: 0  # TRL collects garbage twice an update, 0.3 s to 0.1 s of training
    args = tiny.arguments(
        directory / "checkpoints",
        gradient_accumulation_steps=1 if "processes" in kind else 2,  # 4 rollouts per update in each kind
        fsdp="shares" in kind,
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
    """Start a run and return the id of its first process, which is also that of its process group."""
    directory.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    os.setsid()
    status = 1
    try:
        if "processes" in kind:
            commands.in_processes(2, train, kind, directory)
        else:
            train(kind, directory)
        status = 0
    finally:
        os._exit(status)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a run ended with status {status}"


def kill_at(child: int, directory: Path, update: int, after_s: float) -> None:
    """Kill the process group `after_s` seconds after this update."""
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
    updates = sorted(chance.sample(range(1, UPDATES), KINDS[kind]))
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


def main(directory: Path, seed: int) -> None:
    """Print what `compare` returns for each kind of run, a line of JSON each."""
    for place, kind in enumerate(KINDS):
        print(json.dumps(compare(kind, directory / kind.replace(" ", "-"), random.Random(seed + place))), flush=True)
