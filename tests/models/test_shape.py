import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import loading, shape
from helpers import families

RANDOM = {"vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}


def saved(model: PreTrainedModel, folder: Path) -> Model:
    model.save_pretrained(folder)
    return Model(name=str(folder), revision=None, tokenizer="embedded", random=None)


def test_random_weights_are_counted_as_transformers_makes_them() -> None:
    found = shape.of(Model(name="random", revision=None, tokenizer="embedded", random=RANDOM))
    assert found.weights == GPT2LMHeadModel(GPT2Config.from_dict(RANDOM)).num_parameters()
    assert (found.layers, found.width, found.inner, found.heads, found.vocabulary) == (3, 32, 128, 4, 100)
    assert (found.is_gated, found.has_dropout, found.packs) == (False, True, True)


def test_the_size_of_gpt2_is_known_from_its_config() -> None:
    gpt2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257, "n_positions": 1024}
    assert shape.of(Model(name="random", revision=None, tokenizer="embedded", random=gpt2)).weights == 124_439_808


@pytest.mark.parametrize("family", families.FAMILIES)
def test_weights_in_files_are_counted_for_every_family(family: str, tmp_path: Path) -> None:
    model = families.policy(family)
    found = shape.of(saved(model, tmp_path))
    assert found.weights == model.num_parameters()
    assert (found.layers, found.width) == (2, 32)
    head: Any = model.get_output_embeddings()
    is_tied = head.weight is model.get_input_embeddings().weight
    without_head = found.weights - (0 if is_tied else sum(one.numel() for one in head.parameters()))
    assert found.reward_weights == without_head + found.width  # the score


@pytest.mark.parametrize("target_modules", [None, "all-linear", ["down_proj"]])
def test_the_weights_of_an_adapter_are_those_that_peft_trains(
    target_modules: list[str] | str | None, tmp_path: Path
) -> None:
    model, peft = saved(families.policy("llama"), tmp_path), compose.load([]).settings.sft.peft
    found, adapter = shape.of(model), dataclasses.replace(peft, r=3, target_modules=target_modules)
    base = loading.load_policy(str(tmp_path))
    with warnings.catch_warnings(action="ignore"):  # PEFT reads a deprecated attribute
        trained = get_peft_model(base, loading.lora(adapter, base, "sft.peft"))  # type: ignore[arg-type]  # r is above 0
    assert found.trained(adapter, found.weights) == sum(
        one.numel() for one in trained.parameters() if one.requires_grad
    )
    assert found.trained(peft, found.weights) == found.weights
