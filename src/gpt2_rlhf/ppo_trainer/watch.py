"""Measure a PPO run on held-out prompts, keep the figures on disk, choose the best update and decide when to stop.

The files that evidence.measured writes are the whole state: a run resumed from update k reads those up to k and goes
on like a run that was never interrupted.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence import measured as heldout_files
from gpt2_rlhf.evidence.comparison import answer_figures, estimate
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.ppo_trainer import guards

# (update, policy, reference or None) -> figures and answers
Measure = Callable[[int, PreTrainedModel, PreTrainedModel | None], tuple[Measured, list[Answer]]]


@dataclass(frozen=True)
class WatchResult:
    """Result of all measurements so far: the newest figures, the best update, and why to stop, if at all."""

    metrics: dict[str, float]
    best_update: int
    stop: str | None


@dataclass
class Watch:
    """The held-out measurements of one run, which the first of its processes makes."""

    directory: Path
    prompts: Sequence[str]
    measure_policy: Measure
    best_by_set: str | None  # ppo.heldout.best_by
    guard: Guard
    history: list[Measured] = field(default_factory=list, init=False)

    @property
    def best_by(self) -> str:
        """What the best update is chosen by: "reward", "judge" or "utility"; known once something was measured."""
        return guards.best_by(self.history[0], self.best_by_set)

    def save(self, checkpoint: Path) -> None:
        """Copy the measurements so far into a checkpoint."""
        if self.history:
            shutil.copytree(self.directory, checkpoint / heldout_files.DIRECTORY)

    def resume(self, update: int, checkpoint: Path | None) -> WatchResult | None:
        """Restore the measurements up to this update; return None if there are none.

        checkpoint: the folder that has a copy of them. Without one all begins anew, also what an earlier start left.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        if checkpoint is not None and (checkpoint / heldout_files.DIRECTORY).is_dir():
            shutil.copytree(checkpoint / heldout_files.DIRECTORY, self.directory)
        self.history = heldout_files.read(self.directory, update)
        return self._result() if self.history else None

    def measure(self, update: int, policy: PreTrainedModel, reference: PreTrainedModel | None) -> WatchResult:
        """Measure the policy, and keep figures and answers on disk.

        Raises:
            UserError: a reward or utility is not finite, or what `best_by` names was not measured.
        """
        measured, answers = self.measure_policy(update, policy, reference)
        heldout_files.write(self.directory, measured, self.prompts, [answer.text for answer in answers])
        self.history.append(measured)
        return self._result()

    def report(self, kept_update: int) -> dict[str, Any]:
        """Return figures with intervals of the SFT model, of the last measured policy and of the one handed on.

        `kept` is null if the policy handed on was not measured.
        """
        by_update = {
            measured.update: {
                "update": measured.update,
                **answer_figures(measured, seed=0),
                "kl_nats": estimate(measured.kl_nats, seed=0),
            }
            for measured in self.history
        }
        return {
            "prompts": len(self.prompts),
            "measured_updates": list(by_update),
            "start": by_update[self.history[0].update],
            "last": by_update[self.history[-1].update],
            "kept": by_update.get(kept_update),
        }

    def _result(self) -> WatchResult:
        reasons = guards.verdicts(self.history, self.guard)
        best_update = guards.best(self.history, reasons, self.best_by)
        return WatchResult(heldout_files.summary(self.history[-1]), best_update, reasons[-1])
