"""Have each of two processes train SFT and reward models, sharded and data parallel.

The first process writes found.json there: for each of NAMES what was logged; the stages are beside it.
"""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from gpt2_rlhf import data, pipeline, reward, sft
from gpt2_rlhf.config import compose
from gpt2_rlhf.launch import training, world
from gpt2_rlhf.launch.build import build
from gpt2_rlhf.launch.child import Interrupted
from gpt2_rlhf.store.stage import Stage, fault, write_manifest

NAMES = ("sft", "reward", "reward with an adapter")


def overrides(directory: Path, adapter: bool) -> list[str]:
    trained = [
        "args.max_steps=3", "args.save_steps=2", "args.logging_steps=1", "args.per_device_train_batch_size=2",
        "args.gradient_accumulation_steps=2", "args.learning_rate=1e-3", f"peft.r={2 * adapter}",
    ]  # fmt: skip
    return [
        f"output_dir={directory}",
        "data.train_pairs=60",
        "data.test_pairs=8",
        "model=gpt2_random",
        "model.random={vocab_size: 1536, n_positions: 512, n_embd: 32, n_layer: 2, n_head: 2}",
        "data=embedded",
        *(f"{kind}.{one}" for kind in ("sft", "reward") for one in trained),
    ]


@contextmanager
def stopped_after(step: int) -> Iterator[None]:
    """Within the block, the second process gets SIGTERM in this step of a training."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1 and world.rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    own = training.callbacks
    training.callbacks = lambda stage: [*own(stage), Stop()]
    try:
        yield
    finally:
        training.callbacks = own


def trained(module: Any, settings: Any, stage: Stage) -> list[list[float]]:
    """Train a stage to its end, and return the loss and the gradient's norm of each step."""
    outcome = module.run(settings, stage)
    if world.rank() == 0:
        write_manifest(stage, {"metrics": outcome.metrics})
    world.wait_for(lambda: fault(stage) is None)
    lines = (stage.directory / "metrics.jsonl").read_text().splitlines()
    return [[log["loss"], log["grad_norm"]] for log in map(json.loads, lines) if "loss" in log]


def compare(name: str, directory: Path, needs: dict[str, Stage]) -> tuple[dict[str, Any], Stage]:
    """Train data parallel, sharded, and sharded with a stop; return what was logged, and the first of the stages."""
    kind = name.partition(" ")[0]
    module = {"sft": sft, "reward": reward}[kind]
    composed = compose.load(overrides(directory, adapter="adapter" in name))
    stage = next(one for one in pipeline.plan(composed).stages if one.name == kind)

    def part(way: str) -> Stage:
        inputs = {**stage.inputs, "processes": 2, "sharded": way != "whole"}
        return dataclasses.replace(stage, directory=directory / f"{name} {way}", inputs=inputs, needs=needs)

    found: dict[str, Any] = {way: trained(module, composed.settings, part(way)) for way in ("whole", "sharded")}
    with stopped_after(2):
        try:
            module.run(composed.settings, part("resumed"))
        except Interrupted as stop:
            found["stopped"] = f"{stop} after {stop.checkpoint}"
    found["resumed"] = trained(module, composed.settings, part("resumed"))
    return found, part("whole")


def main(directory: Path) -> None:
    """Train all stages in a folder, as one of two processes."""
    torch.set_num_threads(1)
    composed = compose.load(overrides(directory, adapter=False))
    rows = pipeline.plan(composed, "data").last
    if world.rank() == 0:
        build(data.run, composed.settings, rows)
    world.wait_for(lambda: fault(rows) is None)
    needs = {"data": rows}
    found: dict[str, Any] = {}
    for name in NAMES:
        found[name], stage = compare(name, directory, needs)
        needs |= {"sft": stage} if name == "sft" else {}
    if world.rank() == 0:
        (directory / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
