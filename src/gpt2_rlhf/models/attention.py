"""Attend within the rows of a packed sequence: the only place that chooses how a device does it.

On a CPU each row is one call of SDPA, so that padding costs nothing. On an accelerator a call a row and a layer would
leave it idle, and reading the lengths of rows would stop it. There the rows attend in one call a layer: of torch's
kernel for rows of different lengths (varlen), in half precision without dropout on CUDA; otherwise of SDPA on the rows
padded on the right, where causal attention hides the padding. The varlen kernel is compared with SDPA before its first
use.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ROWS_APART = "rows_apart"  # its name in transformers

# torch prefers cuDNN's attention on Hopper GPUs, and cuDNN plans anew for each shape. Here nearly each batch, and each
# token of a rollout, has another: on an H100, sampling 48 tokens for 32 prompts took up to 6.2 s with it, 0.7 s without
torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True)
class PackedRows:
    """Where the tokens of a padded batch are in the packed sequence; computed once a pass, before the first layer.

    places: of each token in the flattened batch, shape (tokens,). lengths: tokens of each row in the sequence, shape
        (rows,); 0 for a row of padding alone.
    read: tokens of the sequence whose last states are read, shape (tokens read,); None for all.
    shared: how many first tokens each row of the second half has in common with its row of the first half, shape
        (rows / 2,). They are in the sequence once, in the row of the first half. Only a CPU computes with it.
    """

    places: Tensor
    lengths: Tensor
    columns: int  # of the batch, so at least the longest row
    read: Tensor | None = None
    shared: Tensor | None = None

    @cached_property
    def ends(self) -> Tensor:
        """Return the number of tokens up to the end of each row, from 0; int32 of shape (rows + 1,)."""
        return nn.functional.pad(self.lengths.cumsum(0), (1, 0)).int()

    @cached_property
    def slots(self) -> Tensor:
        """Return the place of each token in the flattened batch if it is padded on the right; shape (tokens,)."""
        rows = self.places // self.columns
        return rows * self.columns + torch.arange(len(rows), device=rows.device) - self.ends[rows]

    @cached_property
    def row_tokens(self) -> list[int]:
        """Return the lengths on the host, for which it waits for the device."""
        return self.lengths.tolist()

    @cached_property
    def row_shares(self) -> list[int]:
        """Return how many tokens of each row are in the sequence as those of another row."""
        return [0] * len(self.lengths) if self.shared is None else [0] * len(self.shared) + self.shared.tolist()

    def spread(self, states: Tensor, places: Tensor) -> Tensor:
        """Return states of shape (tokens, ...) at their places in the batch, (rows, columns, ...), and 0 elsewhere."""
        batch = len(self.lengths), self.columns
        padded = states.new_zeros(batch[0] * batch[1], *states.shape[1:])
        return padded.index_copy(0, places, states).unflatten(0, batch)


def packed_rows(is_token: Tensor) -> PackedRows:
    """Return where the tokens are; shape (rows, columns). The host waits for the device once, for their number."""
    return PackedRows(is_token.flatten().nonzero()[:, 0], is_token.sum(1), is_token.shape[1])


def attend_within_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row, or transformers' own attention if `packed_rows` is None.

    Shapes: query, key and value (1, heads, tokens, head width), where key and value may have fewer heads; the result
    (1, tokens, heads, head width).
    """
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **options)
    attend = _way(query.device.type, dtype_of(query), dropout)
    attended = attend(module, (query, key, value), packed_rows, sliding_window, {"dropout": dropout, **options})
    return attended, None


States = tuple[Tensor, Tensor, Tensor]  # of query, key and value
Options = dict[str, Any]  # of SDPA
Way = Callable[[nn.Module, States, PackedRows, int | None, Options], Tensor]


def _way(device_type: str, dtype: torch.dtype, dropout: float) -> Way:
    """Return how rows attend on such a device; the varlen kernel has half precision only, and no dropout."""
    if device_type == "cpu":
        return _row_by_row
    is_for_varlen = device_type == "cuda" and dtype in (torch.bfloat16, torch.float16) and dropout == 0
    return _by_varlen if is_for_varlen else _padded


def _row_by_row(module: nn.Module, states: States, rows: PackedRows, window: int | None, options: Options) -> Tensor:
    queries, keys, values = (part.split(rows.row_tokens, 2) for part in states)
    half, attended = len(queries) // 2, []
    for row, (count, shared) in enumerate(zip(rows.row_tokens, rows.row_shares, strict=True)):
        if count == 0:
            continue  # a row may be padding alone
        q, k, v = queries[row], keys[row], values[row]
        if shared:
            k, v = (torch.cat([part[row - half][:, :, :shared], part[row]], 2) for part in (keys, values))
        mask = _mask(count, shared + count, window, q.device)
        attended.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0])
    return torch.cat(attended, 1)


def _padded(module: nn.Module, states: States, rows: PackedRows, window: int | None, options: Options) -> Tensor:
    query, key, value = (rows.spread(part[0].transpose(0, 1), rows.slots).transpose(1, 2) for part in states)
    mask = _mask(rows.columns, rows.columns, window, query.device)
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
    return attended.flatten(0, 1).index_select(0, rows.slots)[None]


def _by_varlen(module: nn.Module, states: States, rows: PackedRows, window: int | None, options: Options) -> Tensor:
    query, key, value = states
    scale, dtype = options.get("scaling"), dtype_of(query)
    shapes = query.shape[1::2], key.shape[1::2], value.shape[1::2]
    fault = _varlen_fault(query.device, dtype, shapes, window is not None, scale)
    if fault is not None:
        say_once(f"attention on {query.device} pads the rows: {fault}")
        return _padded(module, states, rows, window, options)
    # autocast converts what SDPA gets, but not what varlen_attn gets
    return _varlen((query.to(dtype), key.to(dtype), value.to(dtype)), rows, window, scale)


def _varlen(states: States, rows: PackedRows, window: int | None, scale: float | None) -> Tensor:
    query, key, value = (part[0].transpose(0, 1) for part in states)
    longest = rows.columns  # an upper bound is allowed, and needs no value from the device
    lengths = rows.ends, rows.ends, longest, longest
    window_size = (-1 if window is None else window - 1, 0)  # earlier tokens, later tokens
    is_grouped = query.shape[1] != key.shape[1]
    attended = varlen_attn(query, key, value, *lengths, scale=scale, window_size=window_size, enable_gqa=is_grouped)
    assert isinstance(attended, Tensor)
    return attended[None]


_PROBED_LENGTHS = [3, 0, 17]
_PROBED_WINDOW = 5
_PROBED_TOLERANCE = 0.05  # of the largest number; bfloat16 rounds to 0.004, a window off by one differs by about 0.2


@functools.cache
def _varlen_fault(
    device: torch.device, dtype: torch.dtype, shapes: tuple[torch.Size, ...], has_window: bool, scale: float | None
) -> str | None:
    """Return how the varlen kernel fails or differs from SDPA for random rows, forward or backward, or None.

    shapes: heads and head width of query, key and value.
    """
    window = _PROBED_WINDOW if has_window else None
    module = nn.Module()
    module.num_key_value_groups = shapes[0][0] // shapes[1][0]  # type: ignore[assignment]  # SDPA reads it

    def numbers(attend: Callable[[tuple[Any, ...]], Tensor], of: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        states = tuple(draw(1, part[0], sum(_PROBED_LENGTHS), part[1]).to(of).requires_grad_() for part in shapes)
        attended = attend(states)
        gradients = torch.autograd.grad((attended.float() * draw(*attended.shape)).sum(), states)
        return [part.detach().float() for part in (attended, *gradients)]

    try:
        # a pass may be within autocast, inference mode or a checkpoint, which counts what is saved for the gradient
        with (
            torch.autocast(device.type, enabled=False),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved),
        ):
            lengths = torch.tensor(_PROBED_LENGTHS, device=device)
            rows = packed_rows(torch.arange(max(_PROBED_LENGTHS), device=device) < lengths[:, None])
            ours = numbers(lambda states: _varlen(states, rows, window, scale), dtype)
            options = {"scaling": scale}
            expected = numbers(lambda states: _row_by_row(module, states, rows, window, options), torch.float32)
    except Exception as error:  # kernels refuse devices, head widths and types in ways of their own
        return f"varlen_attn fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, expected, strict=True))
    return None if worst <= _PROBED_TOLERANCE else f"varlen_attn differs from SDPA by {worst:.2g} of the largest number"


def dtype_of(states: Tensor) -> torch.dtype:
    """Return the type in which linear layers and attention compute: autocast's, or that of the tensor."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _mask(queries: int, row_tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return which tokens of a row the last `queries` ones attend to: themselves and those before.

    window: the last so many of them only. None: attention that is causal from the first token needs no mask.
    """
    if queries == row_tokens and (window is None or row_tokens <= window):
        return None
    mask = torch.ones(1, 1, queries, row_tokens, dtype=torch.bool, device=device).tril(row_tokens - queries)
    return mask if window is None else mask.triu(row_tokens - queries + 1 - window)


@functools.cache
def say_once(line: str) -> None:
    """Print a line, once, by the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"  {line}", flush=True)


# Not registered for masks too, so that transformers makes none
AttentionInterface.register(ROWS_APART, attend_within_rows)
