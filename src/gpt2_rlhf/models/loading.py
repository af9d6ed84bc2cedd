"""Load and save the models that the stages train: the policy, the reward model, and LoRA on either.

Weights are always float32, since the trainers do mixed precision themselves. They are always safetensors, and code from
a model's repository is never run.
"""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from gpt2_rlhf.config.settings import Model, Peft
from gpt2_rlhf.models import model_files, tokens


def load_base_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, as tokens.py describes it."""
    place = model.name if model.tokenizer is None else model.tokenizer
    return tokens.load_tokenizer(model_files.source(place), model.revision)


def load_base(model: Model, seed: int) -> PreTrainedModel:
    """Load the base policy; with `model.random`, draw random weights of that shape with `seed` instead."""
    if model.random is None:
        return load_policy(model_files.source(model.name), model.revision)
    eos_token_id = load_base_tokenizer(model).eos_token_id
    set_seed(seed)
    special = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    return GPT2LMHeadModel(GPT2Config.from_dict({**model.random, **special}))


def load_policy(path: str, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model in float32 from a folder or the Hub."""
    return AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=torch.float32, use_safetensors=True)


def load_reward(path: str, pad_token_id: int) -> PreTrainedModel:
    """Load a sequence classifier in float32 with one score, read at the last token that is not padding.

    From a policy's folder the score head is drawn at random: seed the global generator before the call.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    model.config.pad_token_id = pad_token_id
    return model


def lora(peft: Peft, task: TaskType) -> LoraConfig | None:
    """Return the adapter's config, or None at rank 0, where all weights are trained."""
    if peft.r == 0:
        return None
    return LoraConfig(
        r=peft.r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        target_modules=peft.target_modules,
        fan_in_fan_out=True,  # GPT-2 stores its linear layers transposed, as Conv1D
        task_type=task,
    )


def merged(model: torch.nn.Module) -> PreTrainedModel:
    """Return the model with its adapter merged into the weights; without an adapter, the model itself."""
    return model.merge_and_unload() if isinstance(model, PeftModel) else model  # type: ignore[return-value]  # a trainer's model is typed as any module


def save(model: torch.nn.Module | None, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a trainer's model, its adapter merged, together with the tokenizer."""
    assert model is not None  # transformers types a trainer's model as optional
    merged(model).save_pretrained(directory)
    copy.deepcopy(tokenizer).save_pretrained(directory)
