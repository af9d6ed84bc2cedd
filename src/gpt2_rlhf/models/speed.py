"""Time the parts of a transformer of a model's sizes on this machine, for estimates of how long its stages take.

Torch alone is used, since importing transformers' models would take longer than all the timing. What takes long is
timed on fewer rows: its time is proportional to them.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_FLOPS = 1e9  # of one call: some hundredths of a second on a core
_FLOPS_OF_ACCELERATORS = 2e11  # a smaller call would be over before the next one is launched
_NUMBERS = 40_000_000  # in a matrix or a layer that is timed
_LONG_ENOUGH_S = 0.02
_CALLS = 150  # that transformers makes in a layer for a token beyond those here: they cost most in very small models


class Machine:
    """A layer of these sizes on the device that trains; its methods return seconds of work (see `pace`)."""

    def __init__(self, width: int, inner: int, heads: int, half: bool) -> None:
        self.device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        whole = width * (4 * width + 2 * inner)
        shrink = math.ceil(math.sqrt(whole / _NUMBERS))  # a large layer must not fill the memory, nor take long
        heads, width, inner = max(1, heads // shrink), max(1, heads // shrink) * (width // heads), inner // shrink
        self._width, self._heads, self._half = width, heads, half and self.device.type != "cpu"
        sizes = {"qkv": (3 * width, width), "out": (width, width), "up": (inner, width), "down": (width, inner)}
        self._layer = {name: self._numbers(*size).requires_grad_() for name, size in sizes.items()}
        self.weights = sum(weight.numel() for weight in self._layer.values())
        self.scale = whole / self.weights  # time of a layer over that of the one that is timed
        self._timed: dict[tuple[object, ...], float] = {}
        self._wall_s = self._busy_s = 0.0

    @property
    def pace(self) -> float:
        """Time that passes in a second of work here: other programs may use the same cores. From all timings so far."""
        return self._wall_s / self._busy_s if self._busy_s else 1.0

    def call(self) -> float:
        """Time one small operation on the CPU, as a measure of what Python costs."""
        one = torch.ones(1)
        return self._seconds(lambda: one + 1, "call")

    def learn(self, rows: int, columns: int) -> float:
        """Time passes with gradients over texts of `columns` tokens, each attending to itself."""
        part = self._part(rows, 6 * columns * self.weights)
        return self._seconds(lambda: self._pass(part, columns).sum().backward(), "learn", part, columns) * rows / part

    def read(self, rows: int, columns: int) -> float:
        """Time a pass without gradients."""
        part = self._part(rows, 2 * columns * self.weights)
        with torch.no_grad():
            return self._seconds(lambda: self._pass(part, columns), "read", part, columns) * rows / part

    def generate(self, rows: int, past: int) -> float:
        """Time one more token of each row, after `past` tokens in the cache."""
        token, one = self._numbers(rows, 1, self._width), self._numbers(1)
        keys = self._numbers(rows, self._heads, past, self._width // self._heads)
        with torch.no_grad():
            calls = self._seconds(lambda: [one + 1 for _ in range(_CALLS)], "launch")  # a GPU need not end each first
            return calls + self._seconds(lambda: self._one_layer(token, keys), "generate", rows, past)

    def logits(self, tokens: int, vocabulary: int, draws: bool) -> float:
        """Time logits and softmax at some tokens; draws: and the choice of a token from each."""
        rows = min(vocabulary, _NUMBERS // self._width)
        part = self._part(tokens, 2 * self._width * rows)
        head, states = self._numbers(rows, self._width), self._numbers(part, self._width)

        def choose() -> None:
            probabilities = F.linear(states, head).softmax(-1)
            if draws:
                cumulative = probabilities.double().cumsum(-1)
                torch.searchsorted(cumulative, cumulative[:, -1:] / 2)

        with torch.no_grad():
            return self._seconds(choose, "logits", part, draws) * tokens / part * vocabulary / rows * self.scale**0.5

    def step(self) -> float:
        """Time a step of AdamW on the layer's weights; importing torch.optim would take a second more."""
        weights = [weight.detach() for weight in self._layer.values()]
        gradients, means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(3))
        steps = [torch.ones((), device=self.device) for _ in weights]
        adamw: Any = torch._fused_adamw_  # type: ignore[attr-defined]  # what torch.optim.AdamW(fused=True) calls
        options = {"lr": 0.0, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
        options |= {"amsgrad": False, "maximize": False}
        return self._seconds(lambda: adamw(weights, gradients, means, squares, [], steps, **options), "step")

    def _numbers(self, *size: int) -> Tensor:
        return torch.full(size, 0.01, device=self.device)

    def _pass(self, rows: int, columns: int) -> Tensor:
        return self._one_layer(self._numbers(1, rows * columns, self._width).requires_grad_(), None, columns)

    def _one_layer(self, states: Tensor, keys: Tensor | None, text_tokens: int = 1) -> Tensor:
        rows, columns, width = states.shape
        qkv = F.linear(F.layer_norm(states, (width,)), self._layer["qkv"])
        query, key, value = (part.view(rows, columns, self._heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
        if keys is not None:
            attended = F.scaled_dot_product_attention(query, torch.cat([keys, key], 2), torch.cat([keys, value], 2))
        elif self.device.type != "cpu":  # attention.py makes one call for all texts there
            q, k, v = (part[0].unflatten(1, (-1, text_tokens)).transpose(0, 1) for part in (query, key, value))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1, 2)[None]
        else:
            texts = zip(*(part.split(text_tokens, 2) for part in (query, key, value)), strict=True)
            attended = torch.cat([F.scaled_dot_product_attention(*text, is_causal=True) for text in texts], 2)
        states = states + F.linear(attended.transpose(1, 2).reshape(states.shape), self._layer["out"])
        inner = F.gelu(F.linear(F.layer_norm(states, (width,)), self._layer["up"]), approximate="tanh")
        return states + F.linear(inner, self._layer["down"])

    def _seconds(self, work: Callable[[], object], *what: object) -> float:
        """Return the mean time of a call, after one that is not counted; what: names it, so that it is timed once."""
        if what not in self._timed:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
                self._done(work)
                started, busy, calls = time.perf_counter(), self._busy(), 0
                while calls == 0 or time.perf_counter() - started < _LONG_ENOUGH_S:
                    self._done(work)
                    calls += 1
            self._timed[what] = (self._busy() - busy) / calls
            self._wall_s += time.perf_counter() - started
            self._busy_s += self._busy() - busy
        return self._timed[what]

    def _busy(self) -> float:
        """Return a clock that stands while another program has the core, since a short timing may meet such a pause."""
        return time.thread_time() if self.device.type == "cpu" else time.perf_counter()

    def _part(self, rows: int, flops_a_row: float) -> int:
        flops = _FLOPS if self.device.type == "cpu" else _FLOPS_OF_ACCELERATORS
        return max(1, min(rows, int(flops / flops_a_row)))

    def _done(self, work: Callable[[], object]) -> None:
        work()
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
