"""Turn prompts into rollout batches, their order a function of seed and epoch alone, so that PPO can resume anywhere.

TRL's PPO draws its shuffle from the global generator, which rollouts use too: skipping batches on resume could not
give the order an uninterrupted run sees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class PromptBatches:
    """One process's rollout batches, without end; `position` counts the batches given out since the run began.

    Every epoch shuffles all prompts anew and leaves out the ragged rest (fewer than one batch over all processes),
    which differs from epoch to epoch. Each batch goes to the processes in consecutive slices of `rows` prompts.
    """

    prompts: Sequence[Any]
    collate: Callable[[list[Any]], Any]
    rows: int  # prompts per process and batch
    seed: int
    rank: int
    world_size: int
    position: int = 0

    def __iter__(self) -> Iterator[Any]:
        per_epoch = len(self.prompts) // (self.rows * self.world_size)
        while True:
            epoch, batch = divmod(self.position, per_epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.prompts))
            first = (batch * self.world_size + self.rank) * self.rows
            self.position += 1
            yield self.collate([self.prompts[int(row)] for row in order[first : first + self.rows]])
