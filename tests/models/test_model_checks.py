import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import model_checks
from gpt2_rlhf.models.model_files import EMBEDDED_DIR


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    (tmp_path / "model").mkdir()
    for file in EMBEDDED_DIR.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def model(folder: Path) -> Model:
    return Model(str(folder), None, None, None)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def shard(folder: Path) -> list[Path]:
    """Store the folder's weights in two files with an index, as save_pretrained does above its limit."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {1: names[: len(names) // 2], 2: names[len(names) // 2 :]}
    shard_of = {}
    for number, half in halves.items():
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        shard_of |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return sorted(folder.glob("model-*.safetensors"))


def refused(folder: Path, last: str = "evaluate") -> str:
    with pytest.raises(UserError) as caught:
        model_checks.check(model(folder), last)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_bundled_model_and_a_model_in_shards_pass(folder: Path) -> None:
    assert model_checks.check(Model("embedded", None, None, None))["model_type"] == "gpt2"
    shard(folder)
    assert model_checks.check(model(folder))["model_type"] == "gpt2"


@pytest.mark.parametrize("model_type", ["codegen", "granite"])
def test_a_type_without_a_reward_model_class_is_refused_but_can_be_fine_tuned(folder: Path, model_type: str) -> None:
    change(folder / "config.json", lambda config: config.update(model_type=model_type))
    assert f"no sequence classification class for the model type '{model_type}'" in refused(folder)
    assert model_checks.check(model(folder), "sft")["model_type"] == model_type


@pytest.mark.parametrize("model_type", ["t5", "of-its-own-code", None])
def test_a_type_without_a_causal_language_model_is_refused(folder: Path, model_type: str | None) -> None:
    change(folder / "config.json", lambda config: config.update(model_type=model_type))
    assert "no causal lm class" in refused(folder, "sft")


def test_a_shard_that_is_missing_cut_or_of_another_model_is_refused(folder: Path) -> None:
    first, second = shard(folder)
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    assert f"{second} is cut short" in refused(folder)
    second.write_bytes(first.read_bytes())
    assert f"{second} has no tensor" in refused(folder)
    second.unlink()
    assert f"has no {second.name}, which model.safetensors.index.json names" in refused(folder)


def test_shards_without_a_readable_index_are_refused(folder: Path) -> None:
    shard(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text("[]")
    assert "index.json cannot be read" in refused(folder)
    index.unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[1]", "null", "7", '"text"'])
def test_json_that_is_no_object_is_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert f"{folder / name} cannot be read as JSON" in refused(folder)


@pytest.mark.parametrize("named", [{}, {"lm_head.weight": 1}])
def test_an_index_that_names_no_files_is_refused(folder: Path, named: dict[str, Any]) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert "names no files" in refused(folder)


def test_shards_in_a_folder_below_are_read_whole(folder: Path) -> None:
    paths = shard(folder)
    (folder / "weights").mkdir()
    for path in paths:
        path.rename(folder / "weights" / path.name)
    index = folder / "model.safetensors.index.json"
    change(index, lambda found: found.update(weight_map={k: f"weights/{v}" for k, v in found["weight_map"].items()}))
    model_checks.check(model(folder))
    first, second = (folder / "weights" / path.name for path in paths)
    first.write_bytes(second.read_bytes())
    assert "has no tensor" in refused(folder)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("config.json", "n_positions", "many", "n_positions is 'many'; expected a whole number above 0"),
        ("config.json", "vocab_size", None, "vocab_size is None; expected a whole number above 0"),
        ("config.json", "model_type", ["gpt2"], "model_type is ['gpt2']; expected a name"),
        ("tokenizer_config.json", "eos_token", {"x": 1}, "eos_token is {'x': 1}; expected a text"),
        ("tokenizer_config.json", "eos_token", 5, "eos_token is 5; expected a text"),
        ("tokenizer_config.json", "chat_template", 5, "is 5; expected a text"),
    ],
)
def test_a_value_of_a_wrong_type_is_refused(folder: Path, name: str, key: str, value: Any, words: str) -> None:
    change(folder / name, lambda found: found.update({key: value}))
    assert words in refused(folder)


@pytest.mark.parametrize(
    ("sizes", "words"), [({"n_embd": 6, "n_head": 4}, "n_head: 4"), ({"n_layer": 0}, "n_layer: 0")]
)
def test_sizes_of_which_no_model_can_be_made_are_refused(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=f"model.random.{words}"):
        model_checks.check(Model("embedded", None, "embedded", sizes))


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(folder: Path) -> None:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    change(folder / "config.json", lambda config: config.update(vocab_size=vocab_size - 1))
    assert f"id {vocab_size - 1}, but" in refused(folder)


@pytest.mark.parametrize("use", ["text", "eos_token"])
def test_an_added_token_that_rows_use_needs_an_embedding(folder: Path, use: str) -> None:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    added = {"id": vocab_size, "content": "<new>", "single_word": False, "lstrip": False, "rstrip": False}
    token = {**added, "normalized": False, "special": use != "text"}
    change(folder / "tokenizer.json", lambda tokenizer: tokenizer["added_tokens"].append(token))
    if use != "text":
        assert model_checks.check(model(folder))  # no row has it
        change(folder / "tokenizer_config.json", lambda config: config.update(eos_token="<new>"))
    assert "the token '<new>'" in refused(folder)


def test_an_adapter_is_refused_with_how_to_merge_it(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(folder)  # transformers would load the adapter's own base
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "merge_and_unload().save_pretrained" in refused(folder)
