"""Compute the rows of a batch as one sequence without padding, each row attending to itself only.

A padded batch costs rows x longest row; a packed one costs its real tokens, with the same numbers at them. PPO packs
its rows itself (`logits_at`, `states_at`). For SFT and the reward model, hooks pack rows inside the model
(`without_padding`), since TRL pads them.

Not every architecture computes its attention where transformers lets us replace it. So both passes of each model are
compared once, before the first step, and the rows of a model whose numbers differ stay padded.
"""

import copy
import math
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Model

from gpt2_rlhf.models import attention
from gpt2_rlhf.models.attention import PackedRows

_NEEDED = {"input_ids", "attention_mask", "use_cache"}
_REFUSED = {"inputs_embeds", "past_key_values", "output_hidden_states", "output_attentions"}


def use_fused_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight, with the same values up to rounding."""
    for name, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            model.set_submodule(name, GELUTanh())


def without_padding(model: PreTrainedModel, columns: int) -> None:
    """Make a model compute padded batches without their padding, or print why it goes on with padding.

    columns: of the widest batch. Applies to token ids with a mask of shape (rows, columns), padded on either side,
    without a cache: the real tokens go through the model as one sequence, and `last_hidden_state` has shape (rows,
    columns, width), 0 at padding. Other calls, such as a step of generation, are unchanged. Positions count from a
    row's first token unless they are given. Weights, their names and the config stay the same; dropout draws other
    masks. Of a sequence classifier, which reads a row's last token, `last_hidden_state` is right at that token only.
    """
    if "flash" in str(model.config._attn_implementation):
        return  # it removes padding itself
    if _agrees(model, columns, hooked=True):
        _hook(model)


def _hook(model: PreTrainedModel) -> ExitStack:
    """Install the hooks of `without_padding`, which go when the returned stack is closed."""
    backbone: Any = model.get_decoder()
    hooks = _compute_what_is_read(backbone)
    pack = partial(_pack, reads_last=_is_classifier(model))
    hooks.enter_context(backbone.register_forward_pre_hook(pack, with_kwargs=True))
    hooks.enter_context(backbone.register_forward_hook(_unpack, with_kwargs=True))
    own = copy.copy(backbone.config)  # the model's own is saved, and decides which masks are made
    own._attn_implementation = attention.ROWS_APART
    for part in backbone.modules():
        if part is not backbone and vars(part).get("config") is backbone.config:
            part.config = own  # not for a pass only: activation checkpointing calls it again in the backward pass
            hooks.callback(setattr, part, "config", backbone.config)
    return hooks


def _pack(backbone: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], reads_last: bool) -> Any:
    """Return the call without padding, with `packed_rows` for attention and `_unpack`; None leaves it unchanged.

    reads_last: only the state of each row's last token is read.
    """
    named = {**inputs, "input_ids": args[0]} if len(args) == 1 else inputs
    given = {name: value for name, value in named.items() if value is not None}
    others = {name: value for name, value in given.items() if name not in (*_NEEDED, "position_ids")}
    # a flag or a number may be passed on; a tensor of the batch's shape, or hidden states asked for, may not
    is_packable = len(args) < 2 and given.keys() >= _NEEDED and not given["use_cache"] and not others.keys() & _REFUSED
    is_packable = is_packable and not any(isinstance(value, Tensor) and value.ndim for value in others.values())
    if not is_packable or given["attention_mask"].shape != given["input_ids"].shape:
        return None
    ids, is_token = given["input_ids"], given["attention_mask"].bool()
    shared, is_computed = None, is_token
    if reads_last and ids.device.type == "cpu" and len(ids) % 2 == 0:
        shared, is_computed = _shared_tokens(ids, is_token), is_token.clone()
        is_computed[len(shared) :] &= torch.arange(ids.shape[1]) >= shared[:, None]
    rows = attention.packed_rows(is_computed)
    if len(rows.places) == ids.numel():
        return None
    # activation checkpointing computes a layer again in the backward pass, when the rows may be those of another pass
    reads_some = reads_last and not getattr(backbone, "gradient_checkpointing", False)
    rows = replace(rows, shared=shared, read=rows.ends[1:].long() - 1 if reads_some else None)
    positions = given.get("position_ids", is_token.cumsum(1) - 1).expand_as(ids)
    return (), {**others, **_packed_inputs(ids, positions, rows)}


def _shared_tokens(token_ids: Tensor, is_token: Tensor) -> Tensor:
    """Return how many first tokens each row of the second half has in common with its row of the first half.

    TRL's batches of pairs hold the chosen texts first, then the rejected ones: they share their prompts. The last token
    of a row does not count, since its state is read.
    """
    (ids, others), (in_row, in_other) = token_ids.chunk(2), is_token.chunk(2)
    same = ((ids == others) & in_row & in_other).cumprod(1).sum(1)
    return torch.minimum(same, (in_other.sum(1) - 1).clamp(min=0))


def _packed_inputs(token_ids: Tensor, positions: Tensor, rows: PackedRows) -> dict[str, Any]:
    ids = token_ids.flatten()[rows.places][None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),  # without a mask transformers warns of padding
        "position_ids": positions.flatten()[rows.places][None],
        "use_cache": False,
        "packed_rows": rows,
    }


def _unpack(_backbone: nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
    """Return the output with the padding that `_pack` removed."""
    rows = inputs.get("packed_rows")
    if rows is None:
        return None
    output.last_hidden_state = rows.spread(output.last_hidden_state[0], rows.places)
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
    """Return the inputs of a packed or a padded pass, and the places of the tokens to read in it, flattened."""
    if packs:
        rows = attention.packed_rows(is_text)
        places = is_read.flatten()[rows.places].nonzero()[:, 0]
        inputs = _packed_inputs(token_ids, is_text.cumsum(1) - 1, replace(rows, read=places))
        return {**inputs, "return_dict": True}, places
    # padded on the right: every model counts positions from the first column, and no token attends to padding
    order = is_text.int().argsort(dim=1, descending=True, stable=True)[:, : int(is_text.sum(1).max())]
    mask = is_text.gather(1, order)
    ids = token_ids.gather(1, order).masked_fill(~mask, 0)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False, "return_dict": True}
    return inputs, is_read.gather(1, order).flatten().nonzero()[:, 0]


def _logits(model: Any, inputs: dict[str, Any], places: Tensor) -> Tensor:
    head = model.get_output_embeddings()
    at_places = head.register_forward_pre_hook(lambda _head, given: (given[0].flatten(0, 1)[places][None],))
    with at_places, _packed(model.base_model, inputs):
        return model(**inputs).logits[0]


def _states(model: Any, inputs: dict[str, Any], places: Tensor) -> Tensor:
    with _packed(model.base_model, inputs):
        return model.base_model(**inputs).last_hidden_state.flatten(0, 1)[places]


def _packed(backbone: PreTrainedModel, inputs: dict[str, Any]) -> ExitStack:
    """Have packed rows attend to themselves only and GPT-2 compute what is read, until the returned stack is closed."""
    if "packed_rows" not in inputs:
        return ExitStack()
    changes, config = _compute_what_is_read(backbone), backbone.config
    changes.callback(setattr, config, "_attn_implementation", config._attn_implementation)
    config._attn_implementation = attention.ROWS_APART
    return changes


def last_column_alone(model: nn.Module) -> ExitStack:
    """Have GPT-2's last feed-forward layer compute the last column only, until the returned stack is closed."""
    backbone = next((module for module in model.modules() if isinstance(module, GPT2Model)), model)
    return _compute_what_is_read(backbone, reads_last_column=True)


def _compute_what_is_read(backbone: nn.Module, reads_last_column: bool = False) -> ExitStack:
    """Have GPT-2's last feed-forward layer compute some columns only; the others stay as attention leaves them.

    They are the last one, or those that are read of a packed pass (`PackedRows.read`); all of another pass.
    """
    hooks = ExitStack()
    if not isinstance(backbone, GPT2Model):
        return hooks
    last: Any = backbone.h[-1]
    read: Tensor | None = None
    columns = 0

    def begin(_block: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        nonlocal read, columns
        columns, rows = inputs[0].shape[1], options.get("packed_rows")
        if reads_last_column:
            read = torch.arange(columns - 1, columns, device=inputs[0].device)
        else:
            read = None if rows is None else rows.read

    def select(_mlp: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if read is None else (inputs[0][:, read],)

    def spread(_mlp: nn.Module, _inputs: Any, found: Tensor) -> Tensor | None:
        if read is None:
            return None
        return found.new_zeros(len(found), columns, found.shape[-1]).index_copy(1, read, found)

    hooks.enter_context(last.register_forward_pre_hook(begin, with_kwargs=True))
    hooks.enter_context(last.mlp.register_forward_pre_hook(select))
    hooks.enter_context(last.mlp.register_forward_hook(spread))
    return hooks


def _is_classifier(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings() is None


_COMPARED_TOKENS = 24
_TOLERANCE = 1e-4  # of log-probabilities in nats, or of scores; float32 rounds ten times finer
# Whether a model packs in a precision, and up to which number of columns that was compared
_found: WeakKeyDictionary[nn.Module, dict[torch.dtype, tuple[bool, float]]] = WeakKeyDictionary()


def _packs(model: Any, columns: int) -> bool:
    """Whether a model gives the same numbers packed and padded.

    Compared once in each precision, since a device attends in other ways in each, and again when a window is exceeded.
    """
    dtype = attention.dtype_of(next(model.parameters()))
    found = _found.setdefault(model, {})
    packs, up_to = found.get(dtype, (True, 0))
    if not packs or columns <= up_to:
        return packs
    window = _window(model)
    packs = _agrees(model, columns, hooked=False)
    found[dtype] = packs, window if columns <= window else math.inf
    return packs


def _agrees(model: Any, columns: int, hooked: bool) -> bool:
    """Whether a model gives the same numbers packed and padded, compared as in `_fault`; print why not."""
    fault = _fault(model, min(columns, _COMPARED_TOKENS) if columns <= _window(model) else columns, hooked=hooked)
    if fault is not None:
        attention.say_once(f"{model.config.model_type} runs with padding: {fault}")
    return fault is None


def _window(model: Any) -> float:
    """Return the number of tokens up to which no layer's attention is cut."""
    windows = [getattr(model.config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((size for size in windows if isinstance(size, int)), default=math.inf)


def packs_as(model: nn.Module, other: nn.Module, columns: int) -> None:
    """Compare the passes of another model with the same weights, for up to this number of columns, in place of model's.

    A sharded model must not be compared in one process alone: each of its forward passes is one of all processes. Call
    it in the precision of these passes.
    """
    _packs(other, columns)
    _found[model] = _found[other]


@torch.no_grad()
def _fault(model: Any, row_tokens: int, hooked: bool) -> str | None:
    """Return how the numbers of two packed rows differ from those of the same rows padded, or None if they do not.

    hooked: rows are packed by the hooks of `without_padding`, not by the caller.
    """
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation}, not sdpa"
    device = next(model.parameters()).device
    places = torch.arange(row_tokens, device=device)
    token_ids = torch.stack([places * 7919, places * 104729 + 1]) % model.get_input_embeddings().weight.shape[0]
    is_text = torch.stack([places < row_tokens, places < (row_tokens + 1) // 2])
    if _is_classifier(model):
        token_ids[1, : row_tokens // 4] = token_ids[0, : row_tokens // 4]  # as the two texts of a pair
    tokens_read = 1 if _is_classifier(model) else 8
    is_read = is_text & (is_text.cumsum(1) > is_text.sum(1, keepdim=True) - tokens_read)

    def numbers(rows: slice, packs: bool) -> Tensor:
        inputs = _inputs(token_ids[rows], is_text[rows], is_read[rows], packs and not hooked)
        with _hook(model) if packs and hooked else nullcontext():
            if _is_classifier(model):
                return model.score(_states(model, *inputs)).float()
            return _logits(model, *inputs).float().log_softmax(-1)

    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False):
            padded = numbers(slice(2), packs=False)
            alone = torch.cat([numbers(slice(1), packs=False), numbers(slice(1, 2), packs=False)])
            difference = (numbers(slice(2), packs=True) - padded).abs().max()
        # TF32 and 16-bit weights round more; rows alone and rows padded differ by rounding only
        tolerance = max(_TOLERANCE, 4 * float((alone - padded).abs().max()))
        if difference <= tolerance and torch.is_autocast_enabled(device.type):
            # autocast may attend with another kernel; it may be as far from the exact numbers as a padded pass
            tolerance += 4 * float((numbers(slice(2), packs=False) - padded).abs().max())
            difference = (numbers(slice(2), packs=True) - padded).abs().max()
    except Exception as error:  # an architecture may fail in any way where its attention is replaced
        return f"packed rows fail ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    return None if difference <= tolerance else f"packed rows differ by {difference:.2g}"
