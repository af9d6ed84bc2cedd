from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_rlhf import pipeline, ppo
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import training
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
    files.write_json(data.directory / "manifest.json", {"metrics": {"tables": {"ppo": {"prompts": 1000}}}})
    return Stage("ppo", directory / "ppo", {"seed": 0, "processes": 1}, {"data": data})


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
    pipeline.check_arguments(settings, [part])
    assert capsys.readouterr().out == "bf16: this machine has no GPU, so training runs in float32\n"


@pytest.mark.usefixtures("no_gpu")
def test_fp16_in_one_stage_is_float32_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.check_arguments(compose.load(["ppo.args.fp16=true"]).settings, [ppo_stage(tmp_path)])
    assert capsys.readouterr().out == "fp16: this machine has no GPU, so training runs in float32\n"


@pytest.mark.usefixtures("no_gpu")
def test_nothing_is_printed_if_no_stage_sets_bf16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.check_arguments(compose.load([]).settings, [ppo_stage(tmp_path)])
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_gpu")
def test_activation_checkpointing_which_ppo_does_not_use_is_refused(tmp_path: Path) -> None:
    settings = compose.load(["ppo.args.activation_checkpointing=true"]).settings
    with pytest.raises(UserError, match=r"ppo\.args\.activation_checkpointing: true: PPO does not use it"):
        ppo.check(settings, ppo_stage(tmp_path))


@pytest.mark.usefixtures("gpu")
def test_a_gpu_trains_in_the_chosen_precision(tmp_path: Path) -> None:
    part = ppo_stage(tmp_path)
    settings = compose.load([f"{name}.args.bf16=true" for name in PARTS]).settings
    assert all(args["bf16"] for args in chosen_arguments(settings, part).values())
    assert not any(args["bf16"] for args in chosen_arguments(compose.load([]).settings, part).values())
