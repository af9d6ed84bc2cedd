"""What one PPO update logs: means over real tokens and over all processes, and the seconds of each phase."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Means:
    """Weighted means and variances by name, over everything that was added in any process."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Add values of any shape, each with weight 1 or with those of `weights` of that shape (for example a mask)."""
        values = values.detach().float()
        weights = torch.ones_like(values) if weights is None else weights.float()
        sums = torch.stack([(values * weights).sum(), (values.square() * weights).sum(), weights.sum()])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def over_processes(self, accelerator: Accelerator) -> tuple[dict[str, float], dict[str, float]]:
        """Return means and variances; every process must have added the same names. NaN where all weights are 0."""
        sums: Any = accelerator.reduce(torch.stack(list(self._sums.values())), "sum")
        found = dict(zip(self._sums, (sums[:, :2] / sums[:, 2:]).tolist(), strict=True))
        variances = {name: of_squares - mean**2 for name, (mean, of_squares) in found.items()}
        return {name: mean for name, (mean, _) in found.items()}, variances


def explained_variance(of_errors: float, of_returns: float) -> float:
    """Return 1 - Var(return - value) / Var(return): 1 for a perfect critic, at most 0 for one worse than a constant.

    The arguments are the two variances over tokens. NaN where the returns do not vary.
    """
    return 1 - of_errors / of_returns if of_returns > 0 else float("nan")


class Clock:
    """Seconds of one update by phase, and of the rest."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._phases: dict[str, float] = dict.fromkeys(("rollout", "score", "update"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase; wait at its end for the accelerator, whose work would count to the next."""
        started = time.perf_counter()
        yield
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self._phases[name] += time.perf_counter() - started

    def metrics(self, tokens: float, episodes: int) -> dict[str, float]:
        """Return time/..._s of this process, and the tokens (prompt and answer) and episodes per second of all."""
        wall_s = time.perf_counter() - self._started
        phases = {f"time/{name}_s": seconds for name, seconds in self._phases.items()}
        return {
            **phases,
            "time/other_s": wall_s - sum(phases.values()),
            "tokens_per_s": tokens / wall_s,
            "episodes_per_s": episodes / wall_s,
        }
