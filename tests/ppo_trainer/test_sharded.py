"""PPO whose policy and critic are shared between two processes (FSDP2); test_killed.py kills and resumes such runs."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel

from gpt2_rlhf.config.errors import UserError
from helpers import ppo_tiny as tiny
from helpers import ppo_two_processes

_DIFFERENCES = ("val/ratio_var", "val/explained_variance")  # of numbers that nearly cancel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the runs, and what each process found."""
    directory = tmp_path_factory.mktemp("sharded")
    ranks = ppo_two_processes.found(ppo_two_processes.sharded, directory)
    return directory, ranks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_three_updates_are_those_of_data_parallel_training_and_a_process_holds_half(
    run: tuple[Path, list[dict[str, Any]]], kind: str
) -> None:
    first, second = (rank[kind] for rank in run[1])
    whole, shares = first["logged"]
    assert [entry["step"] for entry in whole] == [entry["step"] for entry in shares] == [0, 1, 2, 2, 3, 3]
    for expected, found in zip(whole, shares, strict=True):
        for name in expected:
            if not name.startswith("time/") and "_per_s" not in name:
                tolerance = 1e-4 if name in _DIFFERENCES else 1e-5
                assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=tolerance), name
    assert first["difference"] < 1e-5
    assert first["digest"] == second["digest"]  # both gathered the same model
    assert first["held"] + second["held"] == first["numbers"]
    assert first["held"] == pytest.approx(first["numbers"] / 2, rel=0.01)


@pytest.mark.slow
def test_a_checkpoint_holds_whole_models_and_each_process_s_share_of_the_optimizer(
    run: tuple[Path, list[dict[str, Any]]],
) -> None:
    saved = run[0] / "full" / "shares" / "checkpoint-2"
    policy = GPT2LMHeadModel.from_pretrained(saved)
    assert policy.lm_head.weight is policy.transformer.wte.weight
    value_model = AutoModelForSequenceClassification.from_pretrained(saved / "value_model")
    numbers = sum(one.numel() for model in (policy, value_model) for one in model.parameters())
    assert not (saved / "optimizer.pt").exists()
    for rank in (0, 1):
        moments_bytes = 8 * run[1][rank]["full"]["held"]
        assert (saved / f"optimizer_{rank}.pt").stat().st_size == pytest.approx(moments_bytes, rel=0.1)
    assert (saved / "model.safetensors").stat().st_size < 4.2 * numbers
    assert (run[0] / "lora" / "shares" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fsdp: True: one process trains"):
        tiny.ours(tiny.arguments(tmp_path, fsdp=True))


def test_samples_of_trl_and_a_loss_scale_are_refused_with_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = tiny.arguments(tmp_path, fsdp=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(UserError, match="eval_dataset with fsdp"):
        tiny.ours(args, eval_dataset=tiny.prompts())
    args.fp16 = True
    with pytest.raises(UserError, match=r"fp16: True: .* set bf16=True"):
        tiny.ours(args)
