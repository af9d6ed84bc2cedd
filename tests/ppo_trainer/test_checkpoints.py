from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    MixtralForSequenceClassification,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen2MoeForSequenceClassification,
    set_seed,
)

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.ppo_trainer import checkpoints
from gpt2_rlhf.store import digests
from helpers import ppo_tiny as tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "num_labels": 1,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
# the first three are saved under other names than those of their parameters, or in other pieces; the last is tied
FAMILIES = {
    "neox": (GPTNeoXConfig, {}, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification),
    "mixtral": (MixtralConfig, {"num_local_experts": 3}, MixtralForCausalLM, MixtralForSequenceClassification),
    "qwen2_moe": (Qwen2MoeConfig, EXPERTS, Qwen2MoeForCausalLM, Qwen2MoeForSequenceClassification),
    "tied": (LlamaConfig, {"tie_word_embeddings": True}, LlamaForCausalLM, LlamaForSequenceClassification),
}


def drawn(family: str, head: int, seed: int) -> Any:
    config, changes, *classes = FAMILIES[family]
    set_seed(seed)
    return classes[head](config(**SHAPE, **changes))


@pytest.mark.parametrize("head", [0, 1], ids=["policy", "value model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_restored_to_the_bit_in_families_that_rename_them(tmp_path, family, head):
    saved, other = drawn(family, head, seed=0), drawn(family, head, seed=1)
    assert tiny.digest(other) != tiny.digest(saved)
    checkpoints.write_model(saved, tmp_path)
    embedding = other.get_input_embeddings().weight
    checkpoints.load_policy(other, tmp_path)
    assert tiny.digest(other) == tiny.digest(saved)
    assert other.get_input_embeddings().weight is embedding  # in place: the optimizer holds the same tensors
    assert (other.get_output_embeddings() is not None and other.get_output_embeddings().weight is embedding) == (
        family == "tied" and head == 0
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_restored_to_the_bit_in_families_that_rename_weights(tmp_path, family):
    def adapted(drawn_at_random: bool) -> Any:
        config = LoraConfig(
            r=2,
            target_modules=["query_key_value"] if family == "neox" else ["q_proj", "o_proj"],
            init_lora_weights=not drawn_at_random,
            task_type=TaskType.CAUSAL_LM,
        )
        return get_peft_model(drawn(family, 0, seed=0), config)

    saved, other = adapted(True), adapted(False)
    assert tiny.digest(other) != tiny.digest(saved)
    checkpoints.write_model(saved, tmp_path)
    checkpoints.load_policy(other, tmp_path)
    assert tiny.digest(other) == tiny.digest(saved)


def test_weights_of_another_model_are_refused(tmp_path):
    checkpoints.write_model(drawn("tied", 0, seed=0), tmp_path)
    with pytest.raises(UserError, match=r"the weights of a LlamaForSequenceClassification: \{'missing_keys': 1\}"):
        checkpoints.load_policy(drawn("tied", 1, seed=1), tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "lost"])
def test_a_damaged_checkpoint_of_the_best_policy_is_not_handed_on_and_the_next_run_trains_it_again(tmp_path, damage):
    model = drawn("tied", 0, seed=0)
    for step in (1, 2, 4):
        checkpoints.write_model(model, tmp_path / f"checkpoint-{step}")
        digests.seal(tmp_path / f"checkpoint-{step}")
    other = drawn("tied", 0, seed=1)
    checkpoints.load_best(other, tmp_path, 2)
    assert tiny.digest(other) == tiny.digest(model)
    path = tmp_path / "checkpoint-2" / "model.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"checkpoint-2, the policy to hand on, is damaged: .*model\.safetensors"):
        checkpoints.load_best(other, tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-1",
        "damaged-checkpoint-2",
        "damaged-checkpoint-4",
    ]


def test_a_checkpoint_with_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "value_model").mkdir()
    for name in ("ppo.json", "optimizer.pt", "value_model/model.safetensors"):
        (tmp_path / name).write_text("whole")
    digests.seal(tmp_path)
    (tmp_path / "value_model" / "model.safetensors").write_text("whale")
    words = "not a whole checkpoint: the content of value_model/model.safetensors has changed; give another folder"
    with pytest.raises(UserError, match=words):
        checkpoints.check(tmp_path, 4, 1, "optimizer.pt")


@pytest.mark.usefixtures("small_overheads")
def test_the_loss_scale_of_fp16_is_part_of_a_checkpoint(tmp_path):
    def with_scaler(directory: Any) -> Any:
        trainer: Any = tiny.ours(
            tiny.arguments(directory, total_episodes=16, save_strategy="steps", save_steps=2, max_grad_norm=0)
        )
        # Accelerate refuses fp16 on a CPU; the norm overflows above 2^62, so the first steps are skipped
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**65, growth_interval=4)
        trainer.accelerator.scaler = scaler
        trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, scaler=scaler)
        return trainer

    straight = with_scaler(tmp_path)
    straight.train()
    resumed = with_scaler(tmp_path)
    resumed.train(str(tmp_path / "checkpoint-2"))
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)
    assert resumed.accelerator.scaler.state_dict() == straight.accelerator.scaler.state_dict()
    assert straight.accelerator.scaler.get_scale() < 2.0**65
