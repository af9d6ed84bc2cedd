"""Compute the rows of a batch as one sequence without padding, each row attending to itself only.

A padded batch costs rows x longest row; a packed one costs its real tokens, with the same numbers at them. Attention is
registered with transformers (AttentionInterface) and computed row by row. PPO packs its rows itself. For SFT and the
reward model, hooks pack rows inside the model (`without_padding`), since TRL pads them.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    dropout: float,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row, or transformers' own attention if `row_tokens` is None.

    Shapes: query, key and value (1, heads, tokens, head width); the result (1, tokens, heads, head width).
    """
    if row_tokens is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    rows = zip(*(states.split(row_tokens, 2) for states in (query, key, value)), strict=True)
    attended = [
        nn.functional.scaled_dot_product_attention(*row, dropout_p=dropout, is_causal=True, scale=scaling)
        for row in rows
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


# Not registered for masks too, so that transformers makes none
AttentionInterface.register(_ROWS_APART, _attend_within_rows)
