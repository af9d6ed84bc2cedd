"""Sharded training (FSDP2) of SFT and reward models, in two processes on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from gpt2_rlhf.launch import sharding
from helpers import commands, sharded_stages


def test_a_whole_copy_takes_no_memory_and_keeps_tied_weights_tied() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    copied: Any = sharding.whole_copy(model, torch.device("cpu"))
    assert all(weight.untyped_storage().nbytes() == 0 for weight in copied.parameters())
    sharding.gather(model, copied)
    assert copied.lm_head.weight is copied.transformer.wte.weight
    assert torch.equal(copied.lm_head.weight, model.lm_head.weight)
    assert copied.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()
    sharding.free(copied)
    assert all(weight.untyped_storage().nbytes() == 0 for weight in copied.parameters())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What sharded_stages wrote: the folder of the stages, and what they logged."""
    directory = tmp_path_factory.mktemp("stages")
    done = commands.call(sharded_stages.main, directory, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory, json.loads((directory / "found.json").read_text())


def handed_on(directory: Path, name: str, way: str) -> torch.Tensor:
    """Return all weights that a stage handed on as one vector."""
    saved = load_file(directory / f"{name} {way}" / "model" / "model.safetensors")
    return torch.cat([saved[key].flatten() for key in sorted(saved)])


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_stages.NAMES)
def test_the_first_three_steps_are_those_of_data_parallel_training(run: tuple[Path, dict[str, Any]], name: str) -> None:
    directory, found = run
    assert len(found[name]["whole"]) == 3
    torch.testing.assert_close(
        torch.tensor(found[name]["sharded"]), torch.tensor(found[name]["whole"]), rtol=1e-5, atol=0
    )
    whole, sharded = handed_on(directory, name, "whole"), handed_on(directory, name, "sharded")
    assert (sharded - whole).norm() < 1e-5 * whole.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_stages.NAMES)
def test_a_stage_that_a_signal_stopped_resumes_to_the_same_weights_to_the_bit(
    run: tuple[Path, dict[str, Any]], name: str
) -> None:
    directory, found = run
    assert found[name]["stopped"] == "SIGTERM after checkpoint-2"
    assert found[name]["resumed"] == found[name]["sharded"]
    assert torch.equal(handed_on(directory, name, "resumed"), handed_on(directory, name, "sharded"))


@pytest.mark.slow
def test_the_models_handed_on_are_whole_and_their_checkpoints_are_shares(
    run: tuple[Path, dict[str, Any]],
) -> None:
    directory, _ = run
    policy: Any = AutoModelForCausalLM.from_pretrained(directory / "sft sharded" / "model")
    assert policy.lm_head.weight is policy.transformer.wte.weight
    scorer = AutoModelForSequenceClassification.from_pretrained(directory / "reward sharded" / "model")
    for name, model in (("sft", policy), ("reward", scorer)):
        file = directory / f"{name} sharded" / "model" / "model.safetensors"
        weights = sum(weight.numel() for weight in model.parameters())  # a tied weight once
        assert file.stat().st_size == pytest.approx(4 * weights, rel=0.1)
        checkpoint = directory / f"{name} sharded" / "checkpoints" / "checkpoint-2"
        for part in ("pytorch_model_fsdp_0", "optimizer_0"):
            assert len(list((checkpoint / part).glob("*.distcp"))) == 2
