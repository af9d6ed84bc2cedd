"""What one PPO update reports: means over real tokens and over all processes, and where its seconds went.

TRL 1.12 averages approxkl, entropy and ratio over padding too, weights microbatches alike however many tokens they
hold, and counts slots it never filled (huggingface/trl#7012, #6809).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

PHASES = ("rollout", "score", "update")


class Means:
    """Weighted means by name, over everything that was added in any process."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add values of any shape, each weighing 1, or as `weights` of that shape say (a mask, for one)."""
        values = values.detach().float()
        weights = torch.ones_like(values) if weights is None else weights.float()
        pair = torch.stack([(values * weights).sum(), weights.sum()])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def over_processes(self, accelerator: Accelerator) -> dict[str, float]:
        """The means; every process must have added the same names. A name whose weights are all 0 gives NaN."""
        sums = accelerator.reduce(torch.stack(list(self._sums.values())), "sum")
        assert isinstance(sums, Tensor)
        return {name: (total / weight).item() for name, (total, weight) in zip(self._sums, sums, strict=True)}


def explained_variance(mean_error: float, mean_square_error: float, mean: float, mean_square: float) -> float:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for one no better than a constant, or worse.

    The arguments are means over tokens: of return - value, of its square, of the return, of its square. NaN where the
    returns do not vary.
    """
    variance = mean_square - mean**2
    return 1 - (mean_square_error - mean_error**2) / variance if variance > 0 else float("nan")


class Clock:
    """Seconds of one update by phase, and their rest."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block to a phase; waits for the accelerator at its end, whose work would count to the next."""
        started = time.perf_counter()
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._phases[name] += time.perf_counter() - started

    def metrics(self, tokens: float, episodes: int) -> dict[str, float]:
        """time/..._s of this process, and the tokens (prompt and answer) and episodes of all processes per second."""
        wall_s = time.perf_counter() - self._started
        phases = {f"time/{name}_s": seconds for name, seconds in self._phases.items()}
        return {
            **phases,
            "time/other_s": wall_s - sum(phases.values()),
            "tokens_per_s": tokens / wall_s,
            "episodes_per_s": episodes / wall_s,
        }
