"""Find a base model's files and check them without torch, so that a wrong model is refused within seconds."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gpt2_rlhf import embedded
from gpt2_rlhf.config.errors import UserError, one_line
from gpt2_rlhf.config.hub_errors import HUB_TIMEOUT_S, hub_errors, is_commit, require_undamaged
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import padding, templates
from gpt2_rlhf.store.files import sha256

_SIZES = (
    "vocab_size", "n_positions", "max_position_embeddings", "n_layer", "num_hidden_layers", "n_head",
    "num_attention_heads", "n_embd", "hidden_size",
)  # fmt: skip
_SMALL_BYTES = 20_000_000  # hashed in a fraction of a second, each time
EMBEDDED_DIR = Path(embedded.__file__).parent / "model"


def local_dir(place: str) -> Path | None:
    """Return the folder that `place` names, or None for a Hub name."""
    if place == "embedded":
        return EMBEDDED_DIR
    path = Path(place).expanduser()
    return path if path.is_dir() or place.startswith((".", "/", "~")) else None


def folder(place: str, model: Model) -> Path:
    """Return the folder that transformers loads from, which for the Hub is in its cache: no stage makes a request."""
    found = local_dir(place)
    file = "config.json" if place == model.name else "tokenizer.json"
    return _require(place, file, model).parent if found is None else found


def check(model: Model, template: str | None = None) -> dict[str, Any]:
    """Return the base model's config, after a check that all files that loading needs are there and readable.

    template: data.template, the form of the prompts.

    Raises:
        UserError: a folder or file is missing or unreadable, the config has no number of positions, no token of the
            vocabulary can pad, the chat template is not usable, or the Hub has no such model or cannot be reached.
    """
    pad_token, pad_token_id = padding_token(model, template)
    if model.random is not None:
        _check_random(model.random)
        return {**model.random, "model_type": "gpt2"}
    config_file = _require(model.name, "config.json", model)
    config = read_json(config_file)
    find(model.name, "generation_config.json", model)
    if not isinstance(config.get("model_type"), str | None):
        raise UserError(f"model.name: {config_file}: model_type is {config['model_type']!r}; expected a name")
    for name in _SIZES:
        if name in config and (type(config[name]) is not int or config[name] < 1):
            raise UserError(f"model.name: {config_file}: {name} is {config[name]!r}; expected a whole number above 0")
    if pad_token_id >= config.get("vocab_size", pad_token_id + 1):
        raise UserError(
            f"model.tokenizer: the token to pad with, {pad_token}, has id {pad_token_id}, but {config_file} has a "
            f"vocab_size of {config['vocab_size']}; use the model's own tokenizer"
        )
    if "n_positions" not in config and "max_position_embeddings" not in config:
        raise UserError(
            f"model.name: {config_file} has no n_positions or max_position_embeddings; expected a causal language model"
        )
    return config


def _check_random(sizes: Mapping[str, int]) -> None:
    """Refuse sizes of which no GPT-2 can be made."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.random.{name}: {size}; expected a whole number above 0")
    if "n_embd" in sizes and sizes["n_embd"] % sizes.get("n_head", 1) != 0:
        raise UserError(
            f"model.random.n_head: {sizes['n_head']} does not divide n_embd, {sizes['n_embd']}; change either"
        )


@contextmanager
def load_errors(what: str, of_memory: tuple[type[Exception], ...] = (MemoryError,)) -> Iterator[None]:
    """Within the block, raise a UserError in place of what transformers raises for files that it cannot use.

    of_memory: errors that are not of the files.
    """
    try:
        yield
    except of_memory:
        raise
    except Exception as error:  # of any type: a config may hold any value
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{what} cannot be loaded ({reason}); save or download the model again") from error


def identity(model: Model, template: str | None) -> str:
    """Return a text that changes with the base model: Hub names with the revision, or digests of local folders.

    template: data.template; the file of a chat template counts if there is one.

    Raises:
        UserError: a folder is missing.
    """
    parts, counted = [], {".json", ".safetensors", ".txt", *([".jinja"] if template else [])}
    for place in (model.name, model.tokenizer):
        folder = None if place is None else local_dir(place)
        if folder is None:
            parts.append(f"{place}@{model.revision}")
        else:
            files = [path for path in sorted(_existing(folder).iterdir()) if path.suffix in counted]
            lines = [f"{path.name} {sha256(path)}\n" for path in files]
            parts.append(hashlib.sha256("".join(lines).encode()).hexdigest())
    return "+".join(parts)


def positions(config: dict[str, Any]) -> int:
    """Return the number of positions, the most tokens that the model can read at once."""
    return int(config["n_positions"] if "n_positions" in config else config["max_position_embeddings"])


def start_tokens(model: Model) -> int:
    """Return how many tokens the tokenizer adds by itself before a text, such as BOS."""
    return next((n for n, added in enumerate(load_tokenizer(model).encode("a").special_tokens_mask) if not added), 0)


def load_tokenizer(model: Model) -> Tokenizer:
    """Load the tokenizer without transformers."""
    path = _require(tokenizer_place(model), "tokenizer.json", model)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"model.tokenizer: {path} is not a tokenizer ({error}); download or save it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_place(model: Model) -> str:
    """Return where the tokenizer is."""
    return model.name if model.tokenizer is None else model.tokenizer


def padding_token(model: Model, template: str | None) -> tuple[str, int]:
    """Return the padding token that tokens.padding_copy will choose, and its id.

    Raises:
        UserError: no token can pad, or with template="chat", the model's chat template cannot be used.
    """
    tokenizer, found = load_tokenizer(model), {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = find(tokenizer_place(model), file, model)
        found |= {} if path is None else read_json(path)
    named = _named_tokens(model, found)
    find(tokenizer_place(model), "added_tokens.json", model)  # so that transformers finds it too
    own = _chat_template(model, found)
    if template is not None:
        _, end = templates.around_answer(own, named, tokenizer)
        named |= {} if end is None else {"eos_token": end}
    pad_token = padding.choose(tokenizer, set(named.values()), "" if template is None else str(own))
    pad_token_id = tokenizer.token_to_id(pad_token)
    assert pad_token_id is not None  # the choice is a token of the vocabulary
    return pad_token, pad_token_id


def _named_tokens(model: Model, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by their names, such as eos_token, without the padding token."""
    named = {}
    for name, token in tokenizer_config.items():
        text = token.get("content", token) if isinstance(token, dict) else token
        if not name.endswith("_token") or text is None or isinstance(text, bool):  # such as add_bos_token
            continue
        if not isinstance(text, str):
            raise UserError(f"model.tokenizer: {tokenizer_place(model)}: {name} is {token!r}; expected a text")
        if name != "pad_token":
            named[name] = text
    return named


def _chat_template(model: Model, tokenizer_config: dict[str, Any]) -> str | None:
    """Return the chat template of the model's own; of several, the one named default."""
    jinja = find(tokenizer_place(model), "chat_template.jinja", model)
    try:
        found = tokenizer_config.get("chat_template") if jinja is None else jinja.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"model.tokenizer: {jinja} cannot be read ({error}); expected a template in UTF-8") from error
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    if found is not None and not isinstance(found, str):
        raise UserError(f"model.tokenizer: the chat_template of {tokenizer_place(model)} is {found!r}; expected a text")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file of a model."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise UserError(f"model.name: {path} cannot be read as JSON ({error}); expected a file of a model") from error
    return found


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"model.name: there is no folder {folder}; expected a model's folder or a Hub name")
    return folder


def _require(place: str, file: str, model: Model) -> Path:
    name, revision = _repository(place, model)
    if local_dir(place) is None and not isinstance(_cached(name, file, revision), str):
        from huggingface_hub import HfApi

        with hub_errors("model", name, revision):
            newest = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)  # a download tries six times
        if not is_commit(revision):
            key = "model.revision=" if place == model.name else f"model.tokenizer={name}@"
            raise UserError(
                f"model.revision: {revision}; expected a commit of {name}, so that a later run starts from the same "
                f"files; its newest is {key}{newest.sha}"
            )
    path = find(place, file, model)
    if path is None:
        raise UserError(f"model.name: {place} has no {file}; expected a model saved by save_pretrained of transformers")
    return path


def find(place: str, file: str, model: Model) -> Path | None:
    """Return a file of a model, downloaded if it is on the Hub and not in the cache; None if there is none.

    Raises:
        UserError: there is no such folder, the Hub fails, or a small file of the cache is damaged.
    """
    found = local_dir(place)
    if found is not None:
        path = _existing(found) / file
        return path if path.is_file() else None
    from huggingface_hub import errors, hf_hub_download, is_offline_mode

    name, revision = _repository(place, model)
    cached = _cached(name, file, revision)
    if cached is not None and not isinstance(cached, str):  # the cache knows that there is no such file
        return None
    with hub_errors("model", name, revision):
        try:
            path = Path(cached or hf_hub_download(name, file, revision=revision))
        except errors.RemoteEntryNotFoundError:
            return None
        except errors.LocalEntryNotFoundError:
            if is_offline_mode() and file != "model.safetensors.index.json":  # the last place that weights can be in
                return None  # transformers did not ask for it when it had a Hub
            raise
    if path.stat().st_size < _SMALL_BYTES:
        require_undamaged("model", path)
    return path


def _repository(place: str, model: Model) -> tuple[str, str | None]:
    """Return name and revision on the Hub; a tokenizer from another repository than the model is named name@commit."""
    name, _, commit = place.partition("@")
    return name, commit or model.revision


def _cached(name: str, file: str, revision: str | None) -> Any:
    """Return the path of a file in the Hub's cache, None if it is not there, or an object if there is no such file."""
    from huggingface_hub import try_to_load_from_cache

    # a branch moves, so the cache may hold an older state of it
    return try_to_load_from_cache(name, file, revision=revision) if is_commit(revision) else None
