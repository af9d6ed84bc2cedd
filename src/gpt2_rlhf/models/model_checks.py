"""Refuse a base model that some stage could not use, without torch: its kind, its vocabulary, its weights.

model_files.check finds the files that every model has; here is what is wrong with a model whose files are all there.
"""

import json
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import trl_fields
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.hub_errors import require_undamaged
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import model_files
from gpt2_rlhf.store.files import read_json

_ADAPTER = "adapter_config.json"


def check(model: Model, last: str = "evaluate", template: str | None = None) -> dict[str, Any]:
    """Return the base model's config, after all checks of the base model that the stages up to `last` need.

    Raises:
        UserError: as model_files.check; or the model is an adapter, of a type without a class for a stage, has fewer
            embeddings than its tokenizer has tokens, or its weights are incomplete.
    """
    folder = model_files.local_dir(model.name)
    if folder is not None and (folder / _ADAPTER).is_file():
        raise _is_adapter(model.name)  # also with a config.json: transformers would load the adapter's own base
    try:
        config = model_files.check(model, template)
    except UserError:
        if folder is None and _hub_has_adapter(model):
            raise _is_adapter(model.name) from None
        raise
    heads = ["CAUSAL_LM"] if last in ("data", "sft") else ["CAUSAL_LM", "SEQUENCE_CLASSIFICATION"]
    for head in heads:
        if config.get("model_type") not in trl_fields.model_types(head):
            use = "the reward model needs one" if head == "SEQUENCE_CLASSIFICATION" else "SFT and PPO need one"
            raise UserError(
                f"model.name: {model.name}: transformers has no {head.lower().replace('_', ' ')} class for the model "
                f"type {config.get('model_type')!r}; {use}; choose a base model of another type, such as gpt2"
            )
    _check_vocabulary(model, config)
    if model.random is None and (folder is not None or last != "data"):
        _check_weights(model)
    return config


def _is_adapter(name: str) -> UserError:
    return UserError(
        f"model.name: {name} is an adapter, not a whole model; merge it first, with "
        f"peft.AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER), save its "
        "tokenizer there too, and set model.name=FOLDER"
    )


def _hub_has_adapter(model: Model) -> bool:
    import httpx2
    from huggingface_hub import HfApi

    try:
        return HfApi().file_exists(model.name, _ADAPTER, revision=model.revision)
    except (httpx2.HTTPError, OSError, ValueError):  # the fault that the first check found is the one to show
        return False


def _check_vocabulary(model: Model, config: dict[str, Any]) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    Special tokens without an embedding pass, if they are not BOS or EOS: no text of the rows has them. Gemma 3 has one.
    """
    if "vocab_size" not in config:
        return
    place = model_files.tokenizer_place(model)
    tokenizer, named = model_files.load_tokenizer(model), model_files.find(place, "tokenizer_config.json", model)
    names = {} if named is None else model_files.read_json(named)
    ends = [names.get(key) for key in ("bos_token", "eos_token")]
    used = {end["content"] if isinstance(end, dict) else end for end in ends}
    unused = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special and t.content not in used}
    largest, token = max((i, token) for token, i in tokenizer.get_vocab().items() if i not in unused)
    if largest >= config["vocab_size"]:
        raise UserError(
            f"model.tokenizer: {place} has the token {token!r} with id {largest}, but {model.name} has embeddings for "
            f"{config['vocab_size']} (vocab_size) only; use the model's own tokenizer, or resize the model's embeddings"
        )


def _check_weights(model: Model) -> None:
    """Refuse weights of which transformers would miss a file or a tensor; those of the Hub are downloaded."""
    name = model.name
    whole = model_files.find(name, "model.safetensors", model)
    if whole is not None:
        header(whole)
        return
    index = model_files.find(name, "model.safetensors.index.json", model)
    if index is None:
        raise UserError(
            f"model.name: {name} has neither model.safetensors nor model.safetensors.index.json; save it in that "
            "format, with AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER), and set model.name=FOLDER"
        )
    try:
        shard_of: dict[str, str] = read_json(index)["weight_map"]
        shards = sorted(set(shard_of.values()))
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.name: {index} cannot be read ({error}); download or save the model again") from error
    for shard in shards:
        path = model_files.find(name, shard, model)
        if path is None:
            raise UserError(f"model.name: {name} has no {shard}, which {index.name} names; download the model again")
        missing = {tensor for tensor, file in shard_of.items() if file == shard} - header(path).keys()
        if missing:
            raise UserError(f"model.name: {path} has no tensor {min(missing)}; download the model again")


def require_whole_weights(model: Model) -> None:
    """Read all bytes of weights from the Hub's cache, to refuse those that were damaged there.

    Raises:
        UserError: names the damaged file and the command that heals it.
    """
    if model.random is None:
        for path in model_files.folder(model.name, model).glob("*.safetensors"):
            require_undamaged("model", path)


def header(path: Path) -> dict[str, Any]:
    """Return the type, shape and place of each tensor in a file, which must be as long as its header says.

    The header is 8 bytes of length, then JSON (github.com/huggingface/safetensors, Format).
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        content = file.read(size) if size < path.stat().st_size else b""
    try:
        tensors = {name: tensor for name, tensor in json.loads(content).items() if name != "__metadata__"}
        end = max(tensor["data_offsets"][1] for tensor in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        require_undamaged("model", path)
        raise UserError(f"model.name: {path} is not a safetensors file; download or save it again") from error
    if 8 + size + end != path.stat().st_size:
        require_undamaged("model", path)
        raise UserError(f"model.name: {path} is cut short or padded; download or save it again")
    return tensors
