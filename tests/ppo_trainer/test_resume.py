import gc
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import (
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForSequenceClassification,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.ppo_trainer import checkpoints
from helpers import commands, ppo_two_processes
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


def lora() -> LoraConfig:
    return LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM)


def arguments(directory: Path, **changes: Any) -> Any:
    """5 updates, 3 in each pass over the 12 prompts, a checkpoint after each."""
    return tiny.arguments(directory, **{"total_episodes": 20, "save_strategy": "steps", "save_steps": 1, **changes})


def interrupted(directory: Path, after: int, **parts: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        tiny.ours(arguments(directory), callbacks=[tiny.Interrupt(after)], **parts).train()
    return directory / f"checkpoint-{after}"


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if not re.match("time/|.*_per_s", name)} for entry in history]


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("after", [2, 3], ids=["inside a pass over the prompts", "at its end"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, kind, after):
    def parts() -> dict[str, Any]:
        return {"peft_config": lora()} if kind == "lora" else {}

    straight = tiny.ours(arguments(tmp_path / "straight"), **parts())
    straight.train()
    checkpoint = interrupted(tmp_path / "stopped", after, **parts())
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = tiny.ours(arguments(tmp_path / "stopped"), **parts())
    assert tiny.trained_digest(resumed) != tiny.trained_digest(straight)
    resumed.train(str(checkpoint))
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)
    assert without_speed(resumed.state.log_history) == without_speed(straight.state.log_history)
    assert [entry["step"] for entry in resumed.state.log_history] == [1, 2, 3, 4, 5]
    assert resumed.state.episode == 20
    assert (resumed.ref_model is None) == (kind == "lora")


def test_a_resumed_run_of_families_that_rename_weights_equals_an_uninterrupted_one(tmp_path):
    shape: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tiny.POSITIONS,
        "pad_token_id": tiny.PAD_ID,
        "num_labels": 1,
    }

    def parts() -> dict[str, Any]:
        set_seed(0)
        mixtral = MixtralConfig(**shape, num_key_value_heads=2, num_local_experts=3)
        policy = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
        return {"model": policy, "value_model": MixtralForSequenceClassification(mixtral)}

    straight = tiny.ours(arguments(tmp_path / "straight"), **parts())
    straight.train()
    checkpoint = interrupted(tmp_path / "stopped", 2, **parts())
    resumed = tiny.ours(arguments(tmp_path / "stopped"), **parts())
    resumed.train(str(checkpoint))
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)


def test_resuming_a_finished_run_trains_nothing_and_restores_its_weights(tmp_path):
    done = tiny.ours(arguments(tmp_path))
    done.train()
    again = tiny.ours(arguments(tmp_path))
    again.train(str(tmp_path / "checkpoint-5"))
    assert again.state.global_step == 5
    assert tiny.trained_digest(again) == tiny.trained_digest(done)


def test_callbacks_of_a_resumed_run_start_at_the_step_of_the_checkpoint(tmp_path):
    class Begins(TrainerCallback):
        saw = (0, 0)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saw = (state.global_step, state.max_steps)
            torch.rand(1000)  # a tracker may draw random numbers

    checkpoint = interrupted(tmp_path, 2)
    begins = Begins()
    resumed = tiny.ours(arguments(tmp_path), callbacks=[begins])
    resumed.train(str(checkpoint))
    assert begins.saw == (2, 5)
    straight = tiny.ours(arguments(tmp_path / "straight"), callbacks=[Begins()])
    straight.train()
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)


def test_stock_checkpoints_lack_the_value_model_and_ours_hold_policy_and_value_model(tmp_path):
    args = arguments(tmp_path / "stock", total_episodes=4)
    tiny.stock(args).train()
    assert not list((tmp_path / "stock").rglob("*value*"))

    trainer = tiny.ours(arguments(tmp_path / "ours", total_episodes=4))
    trainer.train()
    saved = tmp_path / "ours" / "checkpoint-1"
    value_model = AutoModelForSequenceClassification.from_pretrained(saved / "value_model")
    assert tiny.digest(value_model) == tiny.digest(trainer.value_model)
    assert tiny.digest(GPT2LMHeadModel.from_pretrained(saved)) == tiny.digest(trainer.policy_model)
    assert json.loads((saved / "trainer_state.json").read_text())["episode"] == 4
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "value_model",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "ppo.json",
        "trainer_state.json",
        "files.json",
    }


# peft reads an attribute that transformers has deprecated (peft_model.py)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_saved_without_its_base(tmp_path):
    trainer = tiny.ours(arguments(tmp_path, total_episodes=4), peft_config=lora())
    trainer.train()
    saved = tmp_path / "checkpoint-1"
    assert not (saved / "model.safetensors").exists()
    assert tiny.digest(PeftModel.from_pretrained(tiny.policy(), str(saved))) == tiny.digest(trainer.policy_model)


@pytest.mark.parametrize("file", ["model", "value_model", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_interrupted_while_written_is_not_used(tmp_path, monkeypatch, file):
    class Cut(Exception):
        pass

    def cut_at(name: str, write: Any) -> Any:
        def write_or_die(what: Any, target: Any, *rest: Any) -> None:
            if "checkpoint-3" in str(target) and (
                str(target).endswith(name) or (name == "model" and "value" not in str(target))
            ):
                raise Cut
            write(what, target, *rest)

        return write_or_die

    state = type(tiny.ours(arguments(tmp_path)).state)
    monkeypatch.setattr(checkpoints, "write_model", cut_at(file, checkpoints.write_model))
    monkeypatch.setattr(torch, "save", cut_at(file, torch.save))
    monkeypatch.setattr(state, "save_to_json", cut_at(file, state.save_to_json))
    with pytest.raises(Cut):
        tiny.ours(arguments(tmp_path)).train()
    monkeypatch.undo()
    assert Path(str(get_last_checkpoint(str(tmp_path)))).name == "checkpoint-2"

    monkeypatch.setattr(gc, "collect", lambda: 0)
    tiny.ours(arguments(tmp_path)).train(str(tmp_path / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (1, 2, 3, 4, 5)]


def test_on_save_is_called_after_the_checkpoint_is_complete(tmp_path):
    checkpoint = interrupted(tmp_path, 1)
    assert (checkpoint / "trainer_state.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_the_oldest_checkpoints_are_removed_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
    removed = []
    remove = shutil.rmtree

    def watched(path: Path) -> None:
        removed.append((path.name, sorted(p.name for p in path.parent.glob("checkpoint-*"))))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", watched)
    tiny.ours(arguments(tmp_path, save_total_limit=2, total_episodes=16)).train()
    assert removed == [
        ("checkpoint-1", ["checkpoint-1", "checkpoint-2", "checkpoint-3"]),
        ("checkpoint-2", ["checkpoint-2", "checkpoint-3", "checkpoint-4"]),
    ]


def test_a_folder_that_is_not_a_complete_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match=r"checkpoint-1 is not a whole checkpoint: it was not written to its end; "):
        tiny.ours(arguments(tmp_path)).train(str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_other_batches_or_processes_is_refused(tmp_path):
    checkpoint = interrupted(tmp_path, 1)
    with pytest.raises(UserError, match="4 episodes per update on 1 processes, this run has 2 on 1"):
        tiny.ours(arguments(tmp_path, gradient_accumulation_steps=1)).train(str(checkpoint))
    with pytest.raises(UserError, match="4 episodes per update on 1 processes, this run has 4 on 2"):
        checkpoints.check(checkpoint, 4, 2, "optimizer.pt")
    with pytest.raises(UserError, match=r"has no optimizer_0\.pt; resume with the same args\.fsdp"):
        checkpoints.check(checkpoint, 4, 1, "optimizer_0.pt")


@pytest.mark.slow
def test_stock_fails_under_two_processes_to_save_and_to_train_an_adapter_without_a_reference(tmp_path):
    failures = ppo_two_processes.found(ppo_two_processes.stock, tmp_path)
    assert "share memory" in failures[0]["save"]
    assert "is_distributed_loading" in failures[1]["save"]
    assert all("no attribute 'policy'" in failure["lora"] for failure in failures)


@pytest.mark.slow
def test_ours_trains_saves_and_resumes_exactly_under_two_processes_also_after_kill_9(tmp_path):
    first, second = ppo_two_processes.found(ppo_two_processes.whole, tmp_path)
    assert first["steps"] == 5
    assert first == second  # the processes hold the same weights
    assert first["lora_stopped_at"] == 2
    assert first["lora_resumed"] == first["lora"]
    assert first["full"].startswith(first["reloaded"])  # the policy comes first in the digest

    assert commands.call(ppo_two_processes.killed, tmp_path, processes=2).returncode != 0
    ranks = ppo_two_processes.found(ppo_two_processes.resumed, tmp_path)
    assert ranks == [{"from": "checkpoint-2", "full": first["full"], "best": first["best"]}] * 2
