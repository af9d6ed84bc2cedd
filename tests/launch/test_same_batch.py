"""One process and two with half the batch each take the same first updates, in every stage that trains."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from helpers import commands
from helpers.small_run import SMALL

STAGES = ("sft", "reward", "judge", "ppo", "dpo")
# Plain SGD, whose steps are proportional to gradients: Adam turns the rounding of a gradient of 0 into a whole step
SHARED = (
    *(f"{stage}.args.{setting}" for stage in ("sft", "reward") for setting in ("max_steps=3", "logging_steps=1")),
    *(f"{stage}.args.{setting}" for stage in ("sft", "reward") for setting in ("optim=sgd", "learning_rate=0.1")),
)
METHODS = {
    "ppo": (
        "ppo.args.optim=sgd",
        "ppo.args.learning_rate=0.01",
        "ppo.args.num_mini_batches=4",
        "ppo.args.eval_strategy=no",
        "ppo.heldout.best_by=null",
    ),
    "dpo": (
        "dpo.args.optim=sgd",
        "dpo.args.learning_rate=0.1",
        "dpo.args.max_steps=3",
        "dpo.args.logging_steps=1",
        "dpo.args.gradient_accumulation_steps=1",
    ),
}
UNEQUAL = ("time/", "per_second", "per_s", "runtime", "total_flos")  # of the clock, or of padding


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Output folders of one and of two processes."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes-{processes}")
        for method, settings in METHODS.items():
            batch = [f"{one}.args.per_device_train_batch_size={8 // processes}" for one in ("sft", "reward", method)]
            overrides = (*SMALL, *SHARED, *settings, *batch, f"launch.processes={processes}")
            own = [one for one in overrides if method == "ppo" or not one.startswith("ppo.")]
            done = commands.run(method, f"output_dir={folder}", *own)
            assert done.returncode == 0, done.stderr
        folders.append(folder)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_one_and_two_processes_log_the_same_and_end_with_the_same_weights(runs: list[Path], stage: str) -> None:
    directories = [next(run.glob(f"stages/{stage}-*/manifest.json")).parent for run in runs]
    logs = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()] for one in directories]
    assert len([one for one in logs[0] if "train_runtime" not in one]) == 3
    for one, two in zip(*logs, strict=True):
        same = {name for name in one if not any(part in name for part in UNEQUAL)}
        assert {name: two[name] for name in same} == {
            name: pytest.approx(one[name], rel=1e-5, abs=1e-5) for name in same
        }
    is_scorer = stage in ("reward", "judge")
    kind: Any = AutoModelForSequenceClassification if is_scorer else AutoModelForCausalLM
    models = [kind.from_pretrained(directory / "model") for directory in directories]
    assert [model.config.num_labels for model in models] == [1, 1] or not is_scorer
    one, two = (model.state_dict() for model in models)
    difference = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert difference < 1e-5 * torch.cat([weight.flatten() for weight in one.values()]).norm()


@pytest.mark.slow
def test_each_stage_of_two_processes_saves_weights_of_its_own(runs: list[Path]) -> None:
    records = [json.loads(next(runs[1].glob(f"stages/{stage}-*/manifest.json")).read_text()) for stage in STAGES]
    assert len({record["weights_sha256"]["model.safetensors"] for record in records}) == len(STAGES)
