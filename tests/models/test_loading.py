import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model, Peft
from gpt2_rlhf.models import loading, model_files, tokens
from helpers import families
from helpers.tiny import tiny_policy, tiny_reward, tiny_tokenizer

LORA = Peft(2, 4, 0.0, None, None, use_rslora=False, use_dora=False)
TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[5, 9, 17, 3]])


def untied() -> PreTrainedModel:
    return families.policy("gpt_neox")


def adapted(model: PreTrainedModel, peft: Peft) -> Any:
    """The model with its adapter; PEFT warns where fan_in_fan_out does not fit, which fails here."""
    config = loading.lora(peft, model, "sft.peft")
    assert config is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # peft reads a field that transformers has deprecated
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def scored(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": ["all-linear"]},
        {"target_modules": ["c_fc", "attn.c_proj"]},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["ln_f"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [tiny_policy, tiny_reward])
def test_an_adapter_merged_saved_and_loaded_scores_as_in_training(make: Any, changes: Any, tmp_path: Path) -> None:
    model = adapted(make(TOKENIZER), replace(LORA, **changes))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) / 10)
    model.eval()
    expected = scored(model)
    loading.save(model, TOKENIZER, tmp_path)
    load = loading.load_policy if make is tiny_policy else lambda path: loading.load_reward(path, 0)
    torch.testing.assert_close(scored(load(str(tmp_path)).eval()), expected, rtol=0, atol=1e-4)


def test_linear_layers_that_are_not_transposed_are_adapted_as_such() -> None:
    assert adapted(families.policy("llama"), LORA).num_parameters() > 0


def test_a_block_is_no_target_but_can_be_trained_whole() -> None:
    model = tiny_policy(TOKENIZER)
    assert loading.lora(replace(LORA, modules_to_save=["attn"]), model, "sft.peft") is not None
    with pytest.raises(UserError, match="the model has no layer attn"):
        loading.lora(replace(LORA, target_modules=["attn"]), model, "sft.peft")


@pytest.mark.parametrize("field", ["target_modules", "modules_to_save"])
@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (tiny_policy, "wte", r"wte shares its weight \(transformer.wte = lm_head\)"),
        (tiny_policy, "lm_head", "lm_head shares its weight"),
        (tiny_reward, "lm_head", "the model has no layer lm_head; give some of c_attn, c_fc, c_proj, score"),
        (tiny_policy, "c_atn", "the model has no layer c_atn; give some of c_attn, c_fc, c_proj, lm_head"),
        (tiny_policy, "c_attn", None),
        (tiny_reward, "wte", None),
        (untied, "embed_in", None),
        (untied, "lm_head", None),
    ],
)
def test_tied_and_unknown_modules_are_refused_by_name(make: Any, name: str, words: str | None, field: str) -> None:
    model = make() if make is untied else make(TOKENIZER)
    peft = replace(LORA, **{"target_modules": ["c_attn" if make is not untied else "dense"], field: [name]})
    if words is None:
        assert loading.lora(peft, model, "sft.peft") is not None
    else:
        with pytest.raises(UserError, match=f"^sft.peft.{field}: {words}"):
            loading.lora(peft, model, "sft.peft")


def test_targets_are_checked_before_the_weights_are_loaded() -> None:
    bundled, shape = Model("embedded", None, None, None), {"vocab_size": 9, "n_embd": 4, "n_head": 1, "n_layer": 1}
    for model in (bundled, Model("a-shape", None, "embedded", shape)):
        loading.check_lora(model, LORA, "sft.peft")
        loading.check_lora(model, replace(LORA, r=0, target_modules=["c_atn"]), "sft.peft")
        with pytest.raises(UserError, match="no layer c_atn"):
            loading.check_lora(model, replace(LORA, target_modules=["c_atn"]), "sft.peft")
        with pytest.raises(UserError, match="wte shares its weight"):
            loading.check_lora(model, replace(LORA, target_modules=["wte"]), "sft.peft")
        loading.check_lora(
            model, replace(LORA, target_modules=["wte"]), "reward.peft", AutoModelForSequenceClassification
        )


def test_a_family_without_peft_default_is_told_to_name_targets() -> None:
    model = families.policy("llama")
    vars(model.config)["model_type"] = "new_family"  # of this config alone: the attribute is of its class
    with pytest.raises(UserError, match=r"no default for new_family; set it to all-linear"):
        loading.lora(LORA, model, "ppo.peft")


def test_a_text_that_is_no_list_of_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"sft.peft.target_modules: c_attn; give a list of names"):
        loading.lora(replace(LORA, target_modules="c_attn"), tiny_policy(TOKENIZER), "sft.peft")


def test_weights_that_lack_a_tensor_or_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    loading.save(tiny_policy(TOKENIZER), TOKENIZER, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if name != "transformer.ln_f.bias"}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    for load in (loading.load_policy, lambda path: loading.load_reward(path, 0)):
        with pytest.raises(UserError, match=r"model: its weights have no transformer\.ln_f\.bias; save or download"):
            load(str(folder))
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    with pytest.raises(UserError, match=r"model: cannot be loaded \(.*\); save or download") as caught:
        loading.load_policy(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [loading.load_policy, lambda path: loading.load_reward(path, 0)])
def test_a_config_that_counts_fewer_layers_than_the_weights_have_is_refused(load: Any, tmp_path: Path) -> None:
    loading.save(tiny_policy(TOKENIZER), TOKENIZER, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] - 1}))
    with pytest.raises(UserError, match=r"its weights have transformer\.h\..*, a layer that its config does not count"):
        load(str(tmp_path))


def test_models_that_are_loaded_at_the_same_time_are_those_loaded_alone(tmp_path: Path) -> None:
    tiny_policy(TOKENIZER).save_pretrained(tmp_path)
    sizes = {"vocab_size": 1536, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    random = replace(compose.load([]).settings.model, random=sizes)
    loads = [lambda: loading.load_policy(str(tmp_path)), lambda: loading.load_base(random, 3)]
    expected = [load().state_dict() for load in loads]
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(load) for load in loads * 8]
    for place, model in enumerate(found):
        weights = model.result().state_dict()
        assert weights.keys() == expected[place % 2].keys()
        assert all(torch.equal(weight, expected[place % 2][name]) for name, weight in weights.items())


def test_a_config_with_a_value_that_no_model_can_have_is_refused(tmp_path: Path) -> None:
    loading.save(tiny_policy(TOKENIZER), TOKENIZER, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation_function": "none"}))
    with pytest.raises(UserError, match=r"cannot be loaded \(KeyError: 'none'\); save or download"):
        loading.load_policy(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_pdrop": "a tenth"}))
    with pytest.raises(UserError, match=r"its tokenizer or config cannot be loaded \(.*attn_pdrop"):
        tokens.load_published(str(tmp_path))


def test_a_model_that_is_sharded_may_not_fit_on_one_accelerator_and_is_not_moved() -> None:
    model = loading.load_policy(str(model_files.EMBEDDED_DIR))
    sharded = compose.load(["launch=fsdp", "launch.processes=2"]).settings.launch
    assert loading.to_measure(model, sharded) is model


@pytest.mark.parametrize(("rank", "place"), [(None, 0), ("1", 1), ("3", 1)])
def test_each_process_has_an_accelerator_of_its_own(
    rank: str | None, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, places = loading.load_policy(str(model_files.EMBEDDED_DIR)), []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(type(model), "to", lambda self, device: places.append(device) or self)
    monkeypatch.setenv("LOCAL_RANK", rank or "")
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK")
    assert loading.on_device(model) is model
    assert places == [torch.device("cuda", place)]
