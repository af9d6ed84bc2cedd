import dataclasses
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
from transformers.training_args import OptimizerNames
from trl.experimental.ppo import PPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from gpt2_rlhf import building, ppo
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import sharding, training
from gpt2_rlhf.store import files
from gpt2_rlhf.store.stage import Stage

PARTS = ("sft", "reward", "ppo")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)


def ppo_stage(directory: Path) -> Stage:
    """The PPO stage of a run whose data stage has enough prompts."""
    data = Stage("data", directory / "data", {}, {})
    data.directory.mkdir()
    sizes = {"ppo": {"pairs": 1000, "prompts": 1000}}
    files.write_json(data.directory / "manifest.json", {"metrics": {"tables": sizes}})
    return Stage("ppo", directory / "ppo", {"seed": 0, "processes": 1}, {"data": data})


def sharded_stage(directory: Path) -> Stage:
    """The same, with shares of the model in two processes."""
    return dataclasses.replace(ppo_stage(directory), inputs={"seed": 0, "processes": 2, "sharded": True})


def chosen_arguments(settings: Settings, part: Stage) -> dict[str, dict[str, Any]]:
    return {
        "sft": training.arguments(part, settings.sft.args),
        "reward": training.arguments(part, settings.reward.args),
        "ppo": ppo.arguments(settings, part),
    }


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_gpu_trains_in_float32_and_prints_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = compose.load([f"{part}.args.bf16=true" for part in PARTS]).settings
    part = ppo_stage(tmp_path)
    assert all(not args["bf16"] and not args["fp16"] for args in chosen_arguments(settings, part).values())
    building.check_arguments(settings, [part])
    assert capsys.readouterr().out == "bf16: this machine has no GPU, so training runs in float32\n"


@pytest.mark.usefixtures("no_gpu")
def test_fp16_in_one_stage_is_float32_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    building.check_arguments(compose.load(["ppo.args.fp16=true"]).settings, [ppo_stage(tmp_path)])
    assert capsys.readouterr().out == "fp16: this machine has no GPU, so training runs in float32\n"


@pytest.mark.usefixtures("no_gpu")
def test_nothing_is_printed_if_no_stage_sets_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    building.check_arguments(compose.load([]).settings, [ppo_stage(tmp_path)])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_gpu")
def test_activation_checkpointing_which_ppo_does_not_use_is_refused(tmp_path: Path) -> None:
    settings = compose.load(["ppo.args.activation_checkpointing=true"]).settings
    with pytest.raises(UserError, match=r"ppo\.args\.activation_checkpointing: true: PPO does not use it"):
        ppo.check(settings, ppo_stage(tmp_path))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("stage", PARTS)
def test_an_optimizer_whose_state_cannot_be_shared_is_refused_with_sharding(tmp_path: Path, stage: str) -> None:
    kind = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}[stage]
    given = chosen_arguments(compose.load([]).settings, sharded_stage(tmp_path))[stage]
    for optimizer in sharding.OPTIMIZERS:
        training.check(stage, kind, {**given, "optim": optimizer})
    for optimizer in ("adafactor", "adagrad"):
        with pytest.raises(UserError, match=rf"{stage}\.args\.optim: {optimizer}: its state cannot be shared"):
            training.check(stage, kind, {**given, "optim": optimizer})


@pytest.mark.usefixtures("gpu")
def test_a_gpu_trains_in_the_chosen_precision(tmp_path: Path) -> None:
    part = ppo_stage(tmp_path)
    settings = compose.load([f"{name}.args.bf16=true" for name in PARTS]).settings
    assert all(args["bf16"] for args in chosen_arguments(settings, part).values())
    assert not any(args["bf16"] for args in chosen_arguments(compose.load([]).settings, part).values())


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def gpu_has_bf16(request: pytest.FixtureRequest, gpu: None, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: request.param)
    return request.param


def test_by_default_a_gpu_trains_in_bfloat16_if_it_has_it_and_never_in_float16(
    tmp_path: Path, gpu_has_bf16: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = compose.load([]).settings
    for args in chosen_arguments(settings, ppo_stage(tmp_path)).values():
        assert args["bf16"] is gpu_has_bf16
        assert not args.get("fp16")
    kind = "bfloat16" if gpu_has_bf16 else "float32"
    assert set(training.precisions(settings).values()) == {kind}
    training.say_precision(settings)
    assert capsys.readouterr().out == f"precision: sft {kind}, reward {kind}, judge {kind}, ppo {kind}\n"


@pytest.mark.parametrize("chosen", ["bf16=true", "bf16=false", "fp16=true"])
def test_a_chosen_precision_applies_whatever_the_gpu_has(tmp_path: Path, gpu_has_bf16: bool, chosen: str) -> None:
    settings = compose.load([f"{name}.args.{chosen}" for name in PARTS]).settings
    expected = {"bf16=true": "bfloat16", "bf16=false": "float32", "fp16=true": "float16"}[chosen]
    for args in chosen_arguments(settings, ppo_stage(tmp_path)).values():
        assert args["bf16"] is (expected == "bfloat16")
        assert bool(args.get("fp16")) is (expected == "float16")
    assert set(training.precisions(settings).values()) == {expected}


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_every_stage_is_recorded_as_float32() -> None:
    settings = compose.load([f"{name}.args.bf16=true" for name in PARTS]).settings
    assert training.precisions(settings) == dict.fromkeys(("sft", "reward", "judge", "ppo"), "float32")


# an optimizer by each of the functions that transformers makes them with, and the package that it needs
NEEDS = {
    "adamw_bnb_8bit": "bitsandbytes",
    "rmsprop_bnb": "bitsandbytes",
    "adamw_torch_4bit": "torchao",
    "galore_adamw": "galore_torch",
    "apollo_adamw": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free_adamw": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
}


@pytest.mark.parametrize("stage", PARTS)
def test_an_optimizer_whose_package_is_missing_is_refused_before_training(tmp_path: Path, stage: str) -> None:
    kind = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}[stage]
    given = {
        **chosen_arguments(compose.load([]).settings, ppo_stage(tmp_path))[stage],
        "optim_target_modules": ["attn"],
    }
    for optimizer, package in NEEDS.items():
        assert find_spec(package) is None, f"{package} is installed; the rest of this test needs it missing"
        with pytest.raises(UserError, match=rf"{stage}\.args\.optim: {optimizer}: ") as refused:
            training.check(stage, kind, {**given, "optim": optimizer, "optim_target_modules": ["attn"]})
        assert "\n" not in str(refused.value)
    training.check(stage, kind, {**given, "optim": "adafactor"})


def test_every_way_in_which_transformers_makes_an_optimizer_is_covered() -> None:
    handlers: dict[str, Any] = {name: _OPTIMIZER_HANDLERS[name] for name in OptimizerNames}
    without_packages = {"adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop"}
    assert {handlers[name] for name in (*NEEDS, *without_packages)} == set(handlers.values())


@pytest.mark.parametrize("optimizer", ["lomo", "galore_adamw"])
def test_an_optimizer_that_reads_the_model_passes_if_its_package_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    for package in ("galore_torch", "lomo_optim"):
        names = ("GaLoreAdafactor", "GaLoreAdamW", "GaLoreAdamW8bit", "AdaLomo", "Lomo")
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(**dict.fromkeys(names)))
    for library in ("galore_torch", "lomo"):
        monkeypatch.setattr(f"transformers.trainer_optimizer.is_{library}_available", lambda: True)
    given = chosen_arguments(compose.load([]).settings, ppo_stage(tmp_path))["sft"]
    training.check("sft", SFTConfig, {**given, "optim": optimizer, "optim_target_modules": ["attn"]})
    with pytest.raises(UserError, match=r"sft\.args\.optim: galore_adamw: You need to define `optim_target_modules`"):
        training.check("sft", SFTConfig, {**given, "optim": "galore_adamw"})


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay"])
def test_a_schedule_without_its_arguments_is_refused_before_training(tmp_path: Path, schedule: str) -> None:
    given = {**chosen_arguments(compose.load([]).settings, ppo_stage(tmp_path))["ppo"], "lr_scheduler_type": schedule}
    with pytest.raises(UserError, match=rf"ppo\.args\.lr_scheduler_type: {schedule}: .*lr_scheduler_kwargs"):
        training.check("ppo", PPOConfig, given)
    kwargs = {"cosine_with_min_lr": {"min_lr": 0.0}, "warmup_stable_decay": {"num_decay_steps": 2}}[schedule]
    training.check("ppo", PPOConfig, {**given, "lr_scheduler_kwargs": kwargs})


@pytest.mark.usefixtures("no_gpu")
def test_a_machine_without_gpu_moves_no_activations_to_the_cpu(tmp_path: Path) -> None:
    settings = compose.load(["sft.args.activation_offloading=true"]).settings
    assert not training.arguments(ppo_stage(tmp_path), settings.sft.args)["activation_offloading"]


class OneWeight(torch.nn.Module):
    """A model of one weight, whose loss pulls it towards the data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.weight - x + torch.rand(1)) ** 2).mean()}


def trained(part: Stage) -> float:
    """Take three steps with a checkpoint after each, and return the weight."""
    args = TrainingArguments(
        output_dir=str(part.checkpoints_dir),
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        per_device_train_batch_size=2,
        disable_tqdm=True,
        use_cpu=True,
        report_to=[],
    )
    torch.manual_seed(0)
    rows: Any = [{"x": torch.tensor([float(number)])} for number in range(8)]
    trainer = Trainer(OneWeight(), args, train_dataset=rows, callbacks=training.callbacks(part))
    training.train(trainer, part)
    return trainer.model.weight.item()  # type: ignore[union-attr]  # typed as optional


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, float]:
    """A stage with its checkpoints, and the weight of a training that nothing disturbed."""
    part = Stage("sft", tmp_path_factory.mktemp("straight"), {"seed": 0}, {})
    return part, trained(part)


DAMAGED = {
    "model.safetensors": "zeros",
    "optimizer.pt": "cut",
    "scheduler.pt": "lost",
    "rng_state.pth": "zeros",
    "trainer_state.json": "cut",
    "files.json": "cut",
}


@pytest.mark.parametrize(("file", "damage"), DAMAGED.items())
def test_a_damaged_checkpoint_is_kept_aside_and_training_resumes_from_the_one_before_to_the_same_weights(
    straight: tuple[Stage, float], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    whole, expected = straight
    stopped = Stage("sft", tmp_path / "stopped", {"seed": 0}, {})
    shutil.copytree(whole.directory, stopped.directory)
    path = stopped.checkpoints_dir / "checkpoint-3" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "lost":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(len(content)))
    capsys.readouterr()
    assert trained(stopped) == expected
    printed = capsys.readouterr().out
    assert re.search(r"^sft goes on from step 2 of \d+$", printed, re.MULTILINE)
    assert re.search(rf"  checkpoint-3: .*{file}.*; it is kept as damaged-checkpoint-3\n", printed)
    assert (stopped.checkpoints_dir / "damaged-checkpoint-3").is_dir()


@pytest.mark.parametrize(("limit", "kept"), [(1, 2), (2, 2), (5, 5), ("null", None)])
def test_transformers_keeps_the_checkpoint_before_the_newest(tmp_path: Path, limit: Any, kept: int | None) -> None:
    part = Stage("sft", tmp_path, {"seed": 0}, {})
    settings = compose.load([f"sft.args.save_total_limit={limit}"]).settings
    assert training.arguments(part, settings.sft.args)["save_total_limit"] == kept
