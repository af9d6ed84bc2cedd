"""Watch a PPO run on held-out prompts: measure the policy, keep what was measured, say which is best and when to stop.

The files that ppo_measured writes are all its state: a run resumed from update k reads those up to k and goes on as one
that was never interrupted.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence import measured as heldout_files
from gpt2_rlhf.evidence.intervals import bootstrap_mean, bootstrap_share
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.ppo_trainer import guards

# (update, policy, reference or None) -> what was measured, and the answers
Measure = Callable[[int, PreTrainedModel, PreTrainedModel | None], tuple[Measured, list[Answer]]]


@dataclass(frozen=True)
class Seen:
    """What follows from all measurements so far: the newest's figures, the best update, and why to stop, if at all."""

    metrics: dict[str, float]
    best_update: int
    stop: str | None


class Watch:
    """The held-out measurements of one run, in the first process."""

    def __init__(
        self, directory: Path, prompts: Sequence[str], measure: Measure, best_by: str | None, guard: Guard
    ) -> None:
        self._directory = directory
        self._prompts = prompts
        self._measure = measure
        self._best_by = best_by
        self._guard = guard
        self._history: list[Measured] = []

    @property
    def is_guarded(self) -> bool:
        """Whether a limit that is passed stops the run."""
        return self._guard.enabled

    def resume(self, update: int) -> Seen | None:
        """Take up what was measured up to this update; None where that is nothing."""
        self._history = heldout_files.read(self._directory, update)
        return self._seen() if self._history else None

    def look(self, update: int, policy: PreTrainedModel, reference: PreTrainedModel | None) -> Seen:
        """Measure the policy, and keep figures and answers on disk.

        Raises:
            UserError: a reward or utility is not finite, or there is nothing to choose the best policy by.
        """
        measured, answers = self._measure(update, policy, reference)
        heldout_files.write(self._directory, measured, self._prompts, answers)
        self._history.append(measured)
        return self._seen()

    def report(self, kept_update: int) -> dict[str, Any]:
        """The figures of the SFT model, of the last policy measured and of the one kept, each with interval and n.

        `kept` is null where the policy handed on was not measured.
        """
        by_update = {measured.update: _estimates(measured) for measured in self._history}
        return {
            "prompts": len(self._prompts),
            "measured_updates": list(by_update),
            "start": by_update[self._history[0].update],
            "last": by_update[self._history[-1].update],
            "kept": by_update.get(kept_update),
        }

    def _seen(self) -> Seen:
        newest = self._history[-1]
        best_update = guards.best(self._history, self._best_by, self._guard)
        return Seen(heldout_files.summary(newest), best_update, guards.verdict(self._history, self._guard))


def _estimates(measured: Measured) -> dict[str, Any]:
    columns = {
        "reward": measured.rewards,
        "judge_reward": measured.judge_rewards,
        "utility": measured.utilities,
        "kl_nats": measured.kl_nats,
        "answer_tokens": measured.answer_tokens,
        "distinct_2": measured.distinct_2,
    }
    figures = {name: None if values is None else asdict(bootstrap_mean(values)) for name, values in columns.items()}
    return {"update": measured.update, **figures, "eos_rate": asdict(bootstrap_share(measured.ended))}
