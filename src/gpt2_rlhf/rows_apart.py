"""Let the rows of a batch go through a model as one sequence without padding, each attending to itself alone.

A padded batch costs rows x longest row; this costs the tokens there are, and gives the same numbers at them. The
attention is an ordinary one of transformers' (AttentionInterface), called row by row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

_ROWS_APART = "rows_apart"


def use_fused_activations(*models: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight, to the same values but for rounding."""
    for model in models:
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, GELUTanh())


@contextmanager
def rows_apart(backbone: PreTrainedModel) -> Iterator[None]:
    """Within the block, the tokens of one input attend within the rows given as `row_tokens`, their lengths."""
    config = backbone.config
    own = config._attn_implementation
    config._attn_implementation = _ROWS_APART
    try:
        yield
    finally:
        config._attn_implementation = own


def _attend_within_rows(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: None,
    *,
    row_tokens: list[int],
    dropout: float,
    scaling: float,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself; shapes (1, heads, tokens, head width), the result with heads third."""
    rows = zip(*(states.split(row_tokens, 2) for states in (query, key, value)), strict=True)
    attended = [
        nn.functional.scaled_dot_product_attention(*row, dropout_p=dropout, is_causal=True, scale=scaling)
        for row in rows
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


# Not in the registry of masks, so that transformers makes none
AttentionInterface.register(_ROWS_APART, _attend_within_rows)
