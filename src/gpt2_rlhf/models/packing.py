"""Compute the rows of a batch as one sequence without padding, each row attending to itself only.

A padded batch costs rows x longest row; a packed one costs its real tokens, with the same numbers at them. Attention is
registered with transformers (AttentionInterface) and computed row by row. PPO packs its rows itself (`logits_at`,
`states_at`). For SFT and the reward model, hooks pack rows inside the model (`without_padding`), since TRL pads them.

Not every architecture computes its attention where transformers lets us replace it. So PPO compares both passes of each
model once, before the first step, and pads the rows of a model whose numbers differ.
"""

import copy
import functools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Model

_ROWS_APART = "rows_apart"
_NEEDED = {"input_ids", "attention_mask", "use_cache"}


def use_fused_activations(*models: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight, with the same values up to rounding."""
    for model in models:
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, GELUTanh())


def without_padding(model: PreTrainedModel) -> None:
    """Make a GPT-2 model compute padded batches without their padding; change nothing for other families.

    Applies to token ids with a mask of shape (rows, columns), padded on either side, without a cache: the real tokens
    go through the model as one sequence, and `last_hidden_state` has shape (rows, columns, width), 0 at padding. Other
    calls, such as a step of generation, are unchanged. Positions count from a row's first token unless they are given.
    Weights, their names and the config stay the same; dropout draws other masks.
    """
    backbone = model.base_model
    if not isinstance(backbone, GPT2Model) or backbone.config._attn_implementation != "sdpa":
        return  # flash attention removes padding itself
    backbone.register_forward_pre_hook(_pack, with_kwargs=True)
    backbone.register_forward_hook(_unpack, with_kwargs=True)
    own = copy.copy(backbone.config)  # the model's own is saved, and decides which masks are made
    own._attn_implementation = _ROWS_APART
    for module in backbone.modules():
        if isinstance(module, GPT2Attention):
            module.config = own  # permanently: activation checkpointing calls it again in the backward pass


def _pack(_backbone: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> Any:
    """Return the call without padding, with `padded_mask` for `_unpack`; None leaves any other call unchanged."""
    named = {**inputs, "input_ids": args[0]} if len(args) == 1 else inputs
    given = {name: value for name, value in named.items() if value is not None}
    is_packable = len(args) < 2 and _NEEDED <= given.keys() <= _NEEDED | {"position_ids"} and not given["use_cache"]
    if not is_packable or given["attention_mask"].shape != given["input_ids"].shape or given["attention_mask"].all():
        return None
    ids, is_token = given["input_ids"], given["attention_mask"].bool()
    positions = given.get("position_ids", is_token.cumsum(1) - 1)
    packed_ids = ids[is_token][None]
    return (), {
        "input_ids": packed_ids,
        "attention_mask": torch.ones_like(packed_ids),  # without a mask transformers warns of padding
        "position_ids": positions.expand_as(ids)[is_token][None],
        "use_cache": False,
        "row_tokens": is_token.sum(1).tolist(),
        "padded_mask": is_token,
    }


def _unpack(_backbone: nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
    """Return the output with the padding that `_pack` removed."""
    is_token = inputs.get("padded_mask")
    if is_token is None:
        return None
    hidden = output.last_hidden_state[0]
    padded = hidden.new_zeros(*is_token.shape, hidden.shape[-1])
    output.last_hidden_state = padded.masked_scatter(is_token[..., None], hidden)
    return output


def logits_at(model: Any, token_ids: Tensor, is_text: Tensor, is_read: Tensor) -> Tensor:
    """Return a language model's logits at the tokens where `is_read`, row after row; shape (tokens read, vocabulary).

    Shapes: the inputs are (rows, columns); what is not `is_text` is padding, on either side. The logits are the model's
    own, with its scale and soft cap.
    """
    return _logits(model, *_inputs(token_ids, is_text, is_read, _packs(model, token_ids.shape[1])))


def states_at(model: Any, token_ids: Tensor, is_text: Tensor, is_read: Tensor) -> Tensor:
    """Return the last layer's states at the tokens where `is_read`, as `logits_at`; shape (tokens read, width)."""
    return _states(model, *_inputs(token_ids, is_text, is_read, _packs(model, token_ids.shape[1])))


def _inputs(token_ids: Tensor, is_text: Tensor, is_read: Tensor, packs: bool) -> tuple[dict[str, Any], Tensor]:
    """Return the inputs of a packed or a padded pass, and where the tokens to read are in it."""
    options = {"use_cache": False, "return_dict": True}
    if packs:
        ids, positions = token_ids[is_text][None], (is_text.cumsum(1) - 1)[is_text][None]
        # without a mask transformers warns of padding
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
        return {**inputs, "row_tokens": is_text.sum(1).tolist(), **options}, is_read[is_text][None]
    # padded on the right: every model counts positions from the first column, and no token attends to padding
    order = is_text.int().argsort(dim=1, descending=True, stable=True)[:, : int(is_text.sum(1).max())]
    mask = is_text.gather(1, order)
    ids = token_ids.gather(1, order).masked_fill(~mask, 0)
    return {"input_ids": ids, "attention_mask": mask.long(), **options}, is_read.gather(1, order)


def _logits(model: Any, inputs: dict[str, Any], is_read: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _head, given: (given[0][is_read][None],))
    try:
        with _packed(model.base_model, inputs, is_read):
            return model(**inputs).logits[0]
    finally:
        handle.remove()


def _states(model: Any, inputs: dict[str, Any], is_read: Tensor) -> Tensor:
    with _packed(model.base_model, inputs, is_read):
        return model.base_model(**inputs).last_hidden_state[is_read]


@contextmanager
def _packed(backbone: PreTrainedModel, inputs: dict[str, Any], is_read: Tensor) -> Iterator[None]:
    if "row_tokens" not in inputs:
        yield
        return
    with rows_apart(backbone), _last_layer_only_at(backbone, is_read[0]):
        yield


@contextmanager
def _last_layer_only_at(backbone: nn.Module, is_read: Tensor) -> Iterator[None]:
    """Within the block, GPT-2's last feed-forward layer computes only the tokens whose states are read.

    Shapes: `is_read` (tokens,), for inputs of shape (1, tokens).
    """
    if not isinstance(backbone, GPT2Model):
        yield
        return
    last: Any = backbone.h[-1]
    places = is_read.nonzero()[:, 0]

    def spread(_module: nn.Module, _inputs: Any, found: Tensor) -> Tensor:
        return found.new_zeros(1, len(is_read), found.shape[-1]).index_copy(1, places, found)

    handles = [
        last.mlp.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, places],)),
        last.mlp.register_forward_hook(spread),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_COMPARED_TOKENS = 24
_TOLERANCE = 1e-4  # of log-probabilities in nats, or of scores; float32 rounds ten times finer
# Whether a model packs, and up to which number of columns that was compared
_found: WeakKeyDictionary[nn.Module, tuple[bool, float]] = WeakKeyDictionary()


def _packs(model: Any, columns: int) -> bool:
    """Whether a model gives the same numbers packed and padded; compared once, and again when a window is exceeded."""
    packs, up_to = _found.get(model, (True, 0))
    if not packs or columns <= up_to:
        return packs
    windows = [getattr(model.config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    window = min((size for size in windows if isinstance(size, int)), default=math.inf)
    is_short = columns <= window
    fault = _fault(model, min(columns, _COMPARED_TOKENS) if is_short else columns)
    _found[model] = fault is None, window if is_short else math.inf
    if fault is not None and os.environ.get("RANK", "0") == "0":
        _say(f"ppo: {model.config.model_type} runs with padding: {fault}")
    return fault is None


def packs_as(model: nn.Module, other: nn.Module, columns: int) -> None:
    """Compare the passes of another model with the same weights, for up to this number of columns, in place of model's.

    A sharded model must not be compared in one process alone: each of its forward passes is one of all processes.
    """
    _packs(other, columns)
    _found[model] = _found[other]


@functools.cache
def _say(line: str) -> None:
    print(f"  {line}", flush=True)


@torch.no_grad()
def _fault(model: Any, row_tokens: int) -> str | None:
    """Return how the numbers of two packed rows differ from those of the same rows padded, or None if they do not."""
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation}, not sdpa"
    device = next(model.parameters()).device
    places = torch.arange(row_tokens, device=device)
    token_ids = torch.stack([places * 7919, places * 104729 + 1]) % model.get_input_embeddings().weight.shape[0]
    is_text = torch.stack([places < row_tokens, places < (row_tokens + 1) // 2])
    is_read = is_text & (is_text.cumsum(1) > is_text.sum(1, keepdim=True) - 8)

    def numbers(rows: slice, packs: bool) -> Tensor:
        inputs = _inputs(token_ids[rows], is_text[rows], is_read[rows], packs)
        if model.get_output_embeddings() is None:
            return model.score(_states(model, *inputs)).float()
        return _logits(model, *inputs).float().log_softmax(-1)

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            padded = numbers(slice(2), packs=False)
            alone = torch.cat([numbers(slice(1), packs=False), numbers(slice(1, 2), packs=False)])
            difference = (numbers(slice(2), packs=True) - padded).abs().max()
    except Exception as error:  # an architecture may fail in any way where its attention is replaced
        return f"packed rows fail ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    # TF32 and 16-bit weights round more; rows alone and rows padded differ by rounding only
    tolerance = max(_TOLERANCE, 4 * float((alone - padded).abs().max()))
    return None if difference <= tolerance else f"packed rows differ by {difference:.2g}"


@contextmanager
def rows_apart(backbone: PreTrainedModel) -> Iterator[None]:
    """Within the block, tokens attend only within their row; the call's `row_tokens` are the lengths of the rows."""
    config = backbone.config
    own = config._attn_implementation
    config._attn_implementation = _ROWS_APART
    try:
        yield
    finally:
        config._attn_implementation = own


def _attend_within_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_tokens: list[int] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row, or transformers' own attention if `row_tokens` is None.

    Shapes: query, key and value (1, heads, tokens, head width), where key and value may have fewer heads; the result
    (1, tokens, heads, head width).
    """
    if row_tokens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    queries, keys, values = (states.split(row_tokens, 2) for states in (query, key, value))
    attended = [
        sdpa_attention_forward(module, q, k, v, _window(count, sliding_window, query.device), **options)[0]
        for count, q, k, v in zip(row_tokens, queries, keys, values, strict=True)
        if count  # a row may be padding alone
    ]
    return torch.cat(attended, 1), None


def _window(row_tokens: int, size: int | None, device: torch.device) -> Tensor | None:
    """Return the mask of a row's tokens that attend to the last `size` tokens only; None if it hides nothing."""
    if size is None or row_tokens <= size:
        return None
    return torch.ones(1, 1, row_tokens, row_tokens, dtype=torch.bool, device=device).tril().triu(1 - size)


# Not registered for masks too, so that transformers makes none
AttentionInterface.register(_ROWS_APART, _attend_within_rows)
