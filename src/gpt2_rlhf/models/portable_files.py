"""Rewrite the small files of a saved model so that transformers 4 and 5 load the same model from them.

transformers 5 saves what it needs itself. 4.x also needs vocab.json and merges.txt for GPT2Tokenizer, reads the base of
rotary embeddings under another name, and knows neither a list of extra special tokens nor the class TokenizersBackend.
What training left in the files, such as `use_cache: false`, is corrected too. The weights are left alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2_rlhf.models.model_files import positions
from gpt2_rlhf.store.files import read_json

Json = dict[str, Any]

_OF_LOADING = ("is_local", "local_files_only")  # arguments of from_pretrained, which transformers 5.23 saves


def texts(model_dir: Path, sampling: Json) -> dict[str, str]:
    """Return the files to write in place of those in `model_dir`, as name: content.

    sampling: arguments of `generate` that the evaluation used. They replace those of the base model.
    """
    config, tokenizer = read_json(model_dir / "config.json"), read_json(model_dir / "tokenizer.json")
    rewrite: dict[str, Callable[[Json], Json]] = {
        "config.json": _config,
        "generation_config.json": lambda found: {key: found[key] for key in found if key.endswith("_id")} | sampling,
        "tokenizer_config.json": lambda found: _tokenizer_config(found, positions(config)),
    }
    there = {name: read_json(model_dir / name) for name in rewrite if (model_dir / name).is_file()}
    return {name: _text(rewrite[name](found)) for name, found in there.items()} | _vocabulary(tokenizer)


def _config(found: Json) -> Json:
    config = {**found, "use_cache": True}
    if (config.get("architectures") or [""])[0].endswith("ForSequenceClassification"):
        # the pipeline for text classification would apply a sigmoid to a single label
        config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # otherwise each type of layer has its own, which 4.x names in other ways
        config["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return config


def _tokenizer_config(found: Json, longest: int) -> Json:
    config = {key: found[key] for key in found if key not in _OF_LOADING}
    config["model_max_length"] = min(config.get("model_max_length", longest), longest)
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return config


def _vocabulary(tokenizer: Json) -> dict[str, str]:
    """Return vocab.json and merges.txt of a byte-level BPE tokenizer; no class reads those of another kind."""
    model = tokenizer["model"]
    if model["type"] != "BPE" or (tokenizer["decoder"] or {}).get("type") != "ByteLevel":
        return {}
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "vocab.json": _text({**model["vocab"], **added}),
        "merges.txt": "".join(f"{line}\n" for line in ["#version: 0.2", *pairs]),
    }


def _text(content: Json) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
