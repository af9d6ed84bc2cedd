"""Turn scores into what PPO maximises: normalised, then clipped; or take them from a function instead of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2_rlhf.config.errors import UserError

# (prompts, answers) as text -> one score each
ScoreFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Shaping:
    """(score - mean) / std, then at most `clip` in absolute value where there is one."""

    mean: float = 0.0
    std: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(
                f"ppo.reward.normalise: the reward model's scores have standard deviation {self.std:g}; it must be "
                "above 0: the reward model tells no answers apart; train it again, or set ppo.reward.normalise=false"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"ppo.reward.clip: {self.clip:g}; give a number above 0, or null for no clipping")

    def __call__(self, scores: Tensor) -> Tensor:
        """Shaped scores, of the same shape."""
        normalised = (scores - self.mean) / self.std
        return normalised if self.clip is None else normalised.clamp(-self.clip, self.clip)


def scores_of(function: ScoreFunction, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
    """The function's scores, shape (answers,).

    Raises:
        UserError: it gave another number of scores.
    """
    scores = torch.tensor([float(score) for score in function(prompts, answers)])
    if len(scores) != len(answers):
        raise UserError(
            f"ppo.reward.function: it gave {len(scores)} scores for {len(answers)} answers; it must give one for each"
        )
    return scores
