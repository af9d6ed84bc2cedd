"""Load and save the models that the stages train: the policy, the reward model, and LoRA on either.

Weights are always float32, since the trainers do mixed precision themselves. They are always safetensors, and code from
a model's repository is never run.
"""

import copy
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Launch, Model, Peft
from gpt2_rlhf.models import model_checks, model_files, tokens

# While transformers loads a model, it ties no weights of any other, and random weights use the global generator
_ONE_AT_A_TIME = threading.Lock()
_LINEAR = (torch.nn.Linear, Conv1D)
_NUMBER = re.compile(r"\d+")


def load_base(model: Model, seed: int) -> PreTrainedModel:
    """Load the base policy; with `model.random`, draw random weights of that shape with `seed` instead."""
    if model.random is None:
        model_checks.require_whole_weights(model)  # a flipped bit would give other figures without an error
        return load_policy(str(model_files.folder(model.name, model)))
    eos_token_id = tokens.load_base_tokenizer(model, None).eos_token_id
    special = {"bos_token_id": eos_token_id, "eos_token_id": eos_token_id}
    with _ONE_AT_A_TIME:
        set_seed(seed)
        return GPT2LMHeadModel(GPT2Config.from_dict({**model.random, **special}))


def load_policy(path: str) -> PreTrainedModel:
    """Load a causal language model in float32 from a folder.

    Raises:
        UserError: its weights do not fit its config, lack a tensor, or have more layers.
    """
    return _loaded(AutoModelForCausalLM, path, lacking=set())


def load_reward(path: str, pad_token_id: int) -> PreTrainedModel:
    """Load a sequence classifier in float32 with one score, read at the last token that is not padding.

    From a policy's folder the score head is drawn at random: seed the global generator before the call.

    Raises:
        UserError: as `load_policy`.
    """
    model = _loaded(AutoModelForSequenceClassification, path, lacking={"score.weight"}, num_labels=1)
    model.config.pad_token_id = pad_token_id
    return model


def _loaded(kind: Any, path: str, lacking: set[str], **config: int) -> PreTrainedModel:
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, **config}
    with _ONE_AT_A_TIME, model_files.load_errors(f"{path}:", of_memory=(MemoryError, torch.OutOfMemoryError)):
        model, found = kind.from_pretrained(path, **options)
    if lost := found["missing_keys"] - lacking:  # transformers would draw them at random
        raise UserError(f"{path}: its weights have no {min(lost)}; save or download the model again")
    if unread := _of_further_layers(model, found["unexpected_keys"]):  # transformers would leave them out
        raise UserError(
            f"{path}: its weights have {min(unread)}, a layer that its config does not count; save or download the "
            "model again"
        )
    return model


def _of_further_layers(model: PreTrainedModel, unread: Iterable[str]) -> list[str]:
    """Return the names of weights that differ from names of the model in the number of the layer only."""
    names = {_NUMBER.sub("#", name) for name in model.state_dict()}
    forms = {name: _NUMBER.sub("#", name) for name in unread if _NUMBER.search(name)}
    return [name for name, form in forms.items() if any(own.endswith(form) for own in names)]


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """Move a model to the accelerator of this process, if there is one, and return it."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return model
    # as Accelerate chooses, which may not have started yet
    place = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
    return model.to(place)  # type: ignore[arg-type]  # transformers wraps `to`, and the type of `self` is lost


def to_measure(model: PreTrainedModel, launch: Launch) -> PreTrainedModel:
    """Return a model that a training stage loaded, on the accelerator if it fits there: one to shard may not."""
    return model if launch.sharded else on_device(model)


def check_lora(model: Model, peft: Peft, key: str, kind: Any = AutoModelForCausalLM) -> None:
    """Check the adapter's settings on a model without weights. kind: the class of transformers that loads the model.

    Raises:
        UserError: as `lora`.
    """
    if peft.r == 0:
        return
    if model.random is None:
        config = AutoConfig.from_pretrained(model_files.folder(model.name, model))
    else:
        config = GPT2Config.from_dict(model.random)
    with torch.device("meta"):
        lora(peft, kind.from_config(config), key)


def lora(peft: Peft, model: PreTrainedModel, key: str) -> LoraConfig | None:
    """Return the adapter's config for this model, or None at rank 0, where all weights are trained.

    Raises:
        UserError: names a module under the setting `key` that the model does not have, or whose weight is tied to
            another's: merged, the adapter would change both.
    """
    if peft.r == 0:
        return None
    given = asdict(peft)
    if given["target_modules"] in (["all-linear"], "all-linear"):
        given["target_modules"] = "all-linear"
    elif given["target_modules"] is None:
        if (kind := model.config.model_type) not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise UserError(f"{key}.target_modules: null, but PEFT has no default for {kind}; set it to all-linear")
    elif not isinstance(given["target_modules"], list):
        raise UserError(f"{key}.target_modules: {given['target_modules']}; give a list of names, all-linear or null")
    for field in ("target_modules", "modules_to_save"):
        if isinstance(given[field], list):
            for name in given[field]:
                _check_module(name, model, f"{key}.{field}")
    is_classifier = model.get_output_embeddings() is None
    return LoraConfig(
        **given,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2's transposed layers
        task_type=TaskType.SEQ_CLS if is_classifier else TaskType.CAUSAL_LM,
    )


def _check_module(name: str, model: PreTrainedModel, key: str) -> None:
    # PEFT's own rule: a name matches the end of a module's path
    targets = [module for path, module in model.named_modules() if f".{path}".endswith(f".{name}")]
    has_weights = all(isinstance(module, (*_LINEAR, torch.nn.Embedding)) for module in targets)
    if not targets or not (has_weights or key.endswith("modules_to_save")):
        linear = {path.split(".")[-1] for path, module in model.named_modules() if isinstance(module, _LINEAR)}
        raise UserError(f"{key}: the model has no layer {name}; give some of {', '.join(sorted(linear))}")
    named = list(model.named_parameters(remove_duplicate=False))
    for parameter in (parameter for module in targets for parameter in module.parameters()):
        tied = [path.removesuffix(".weight") for path, other in named if other is parameter]
        if len(tied) > 1:
            raise UserError(
                f"{key}: {name} shares its weight ({' = '.join(tied)}), so that merging its adapter would change "
                f"both; leave {name} out"
            )


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save a trainer's model, its adapter merged, together with the tokenizer, whose EOS is the only one."""
    whole: Any = model.merge_and_unload() if isinstance(model, PeftModel) else model
    whole.config.eos_token_id = tokens.eos_id(tokenizer)
    if whole.can_generate():
        whole.generation_config.eos_token_id = tokens.eos_id(tokenizer)
    whole.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):  # safetensors lets only the owner read its files
        weights.chmod((directory / "config.json").stat().st_mode)
    copy.deepcopy(tokenizer).save_pretrained(directory)
