"""Turn prompts into rollout batches whose order depends on seed and update only, so PPO can resume at any update.

TRL's PPO shuffles with the global random generator, which rollouts use too, so a resumed run could not restore the
order of an uninterrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PromptBatches:
    """One process's rollout batches, for any number of epochs.

    Each epoch shuffles all prompts again and leaves out those that do not fill a batch over all processes, which are
    others in each epoch. Each process gets a consecutive slice of `rows` prompts of each batch.
    """

    prompts: Sequence[Any]
    rows: int  # prompts per process and batch
    seed: int
    rank: int
    world_size: int

    def batch(self, position: int) -> list[Any]:
        """Return the prompts of batch number `position`, counted from 0 at the start of the run."""
        per_epoch = len(self.prompts) // (self.rows * self.world_size)
        epoch, place = divmod(position, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
        first = (place * self.world_size + self.rank) * self.rows
        return [self.prompts[int(row)] for row in order[first : first + self.rows]]
