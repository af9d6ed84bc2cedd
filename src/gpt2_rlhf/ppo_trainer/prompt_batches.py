"""Turn prompts into rollout batches whose order is a function of seed and update alone, so PPO can resume anywhere.

TRL's PPO draws its shuffle from the global generator, which rollouts use too: skipping batches on resume could not
give the order an uninterrupted run sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PromptBatches:
    """One process's rollout batches, without end.

    Every epoch shuffles all prompts anew and leaves out the ragged rest (fewer than one batch over all processes),
    which differs from epoch to epoch. Each batch goes to the processes in consecutive slices of `rows` prompts.
    """

    prompts: Sequence[Any]
    rows: int  # prompts per process and batch
    seed: int
    rank: int
    world_size: int

    def batch(self, position: int) -> list[Any]:
        """The prompts of the batch after `position` others, counted from the beginning of the run."""
        per_epoch = len(self.prompts) // (self.rows * self.world_size)
        epoch, place = divmod(position, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
        first = (place * self.world_size + self.rank) * self.rows
        return [self.prompts[int(row)] for row in order[first : first + self.rows]]
