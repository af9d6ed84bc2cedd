"""Find a base model's files and read its config without importing torch, so that faults show within seconds."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gpt2_rlhf import embedded
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.store.files import sha256

EMBEDDED_DIR = Path(embedded.__file__).parent / "model"
_HUB_TIMEOUT_S = 5


def local_dir(place: str) -> Path | None:
    """The folder that `place` names, or None for a Hub name."""
    if place == "embedded":
        return EMBEDDED_DIR
    path = Path(place).expanduser()
    return path if path.is_dir() or place.startswith((".", "/", "~")) else None


def source(place: str) -> str:
    """What transformers' from_pretrained takes for `place`: a folder or a Hub name."""
    folder = local_dir(place)
    return place if folder is None else str(folder)


def check(model: Model) -> dict[str, Any]:
    """The base model's config as a dict, after a look at all that loading it will need.

    Raises:
        UserError: a folder or file is missing or unreadable, weights are not safetensors, the model is not a causal
            language model with known positions, or the Hub has no such model or cannot be reached.
    """
    tokenizer = model.name if model.tokenizer is None else model.tokenizer
    _require(tokenizer, "tokenizer.json", model)
    if model.random is not None:
        return {**model.random, "model_type": "gpt2"}
    config_file = _require(model.name, "config.json", model)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name: {config_file} cannot be read as JSON ({error}); wanted a model's config"
        ) from error
    if "n_positions" not in config and "max_position_embeddings" not in config:
        raise UserError(
            f"model.name: {config_file} has no n_positions or max_position_embeddings; wanted a causal language model"
        )
    folder = local_dir(model.name)
    if folder is not None:
        weights = next(iter(sorted(folder.glob("*.safetensors"))), None)
        if weights is None:
            raise UserError(f"model.name: {folder} has no .safetensors weights; save the model with safe_serialization")
        _check_safetensors(weights)
    return config


def identity(model: Model) -> str:
    """What the base model is by content: Hub names with the revision, or digests of local folders.

    Raises:
        UserError: a folder is missing.
    """
    parts = []
    for place in (model.name, model.tokenizer):
        folder = None if place is None else local_dir(place)
        if folder is None:
            parts.append(f"{place}@{model.revision}")
        else:
            digest = hashlib.sha256()
            for path in sorted(_existing(folder).iterdir()):
                if path.suffix in {".json", ".safetensors", ".txt"}:
                    digest.update(f"{path.name} {sha256(path)}\n".encode())
            parts.append(digest.hexdigest())
    return "+".join(parts)


def positions(config: dict[str, Any]) -> int:
    """How many tokens the model can read at once."""
    return int(config["n_positions"] if "n_positions" in config else config["max_position_embeddings"])


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"model.name: there is no folder {folder}; wanted a model's folder or a Hub name")
    return folder


def _require(place: str, file: str, model: Model) -> Path:
    folder = local_dir(place)
    if folder is None:
        return _from_hub(place, file, model.revision)
    if not (_existing(folder) / file).is_file():
        raise UserError(f"model.name: {folder} has no {file}; wanted a folder written by save_pretrained")
    return folder / file


def _from_hub(name: str, file: str, revision: str | None) -> Path:
    # huggingface_hub reads its settings when imported, and nothing else here needs it
    import httpx2  # what huggingface_hub 2 sends its requests with
    from huggingface_hub import HfApi, errors, hf_hub_download, try_to_load_from_cache

    at = f"{name} at revision {revision or 'main'}"
    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_S)  # one try, where a download makes six
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.HFValidationError as error:
        raise UserError(
            f"model.name: {name!r} is neither a folder nor a Hub name such as openai-community/gpt2"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(f"model.name: {name} is gated; ask for access on its page, then `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"model.name: the Hub has no {at}, or not for you; check the name or `hf auth login`"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise UserError(f"model.name: {at} has no {file}; wanted a model saved by transformers") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx2.HTTPError) as error:
        raise UserError(
            f"model.name: the Hub cannot be reached and {name} is not in the cache; "
            "connect, or use model=embedded or a local folder"
        ) from error


def _check_safetensors(path: Path) -> None:
    """The header of a safetensors file: 8 bytes of length, then JSON (github.com/huggingface/safetensors, Format)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size) if size < path.stat().st_size else b""
    try:
        tensors = json.loads(header)
        end = max(t["data_offsets"][1] for n, t in tensors.items() if n != "__metadata__")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model.name: {path} is not a safetensors file; download it again or save it anew") from error
    if 8 + size + end != path.stat().st_size:
        raise UserError(f"model.name: {path} is cut short or padded; download it again or save it anew")
