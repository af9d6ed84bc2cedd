"""Divide the pairs among the stages: tables sft, reward, judge and ppo for training, and test.

Prompts are divided, not rows, so that no stage meets a prompt that another was trained on. Otherwise PPO would ask the
reward model about its own training prompts, where it scores more confidently than on new ones.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import TABLES, Data
from gpt2_rlhf.rows.transcripts import Pair


def divide(train: Sequence[Pair], test: Sequence[Pair], data: Data) -> dict[str, list[Pair]]:
    """Return the rows of each table, in an order drawn with `data.seed`; the ppo table has each prompt once.

    Raises:
        UserError: there are too few training prompts for the shares.
    """
    groups = _first_pairs(_shuffled_by_prompt(train, data.seed), data.train_pairs)
    if data.disjoint:
        tables = _shares(groups, data)
    else:
        whole = [row for group in groups for row in group]
        tables = {"sft": whole, "reward": whole, "ppo": [group[0] for group in groups]}
    return {**tables, "test": random.Random(data.seed).sample(test, len(test))[: data.test_pairs]}


def _shuffled_by_prompt(pairs: Sequence[Pair], seed: int) -> list[list[Pair]]:
    by_prompt: dict[str, list[Pair]] = {}
    for row in pairs:
        by_prompt.setdefault(row.prompt, []).append(row)
    groups = list(by_prompt.values())
    random.Random(seed).shuffle(groups)
    return groups


def _first_pairs(groups: list[list[Pair]], limit: int | None) -> list[list[Pair]]:
    """Return the first groups, the last of them cut, so that they hold `limit` pairs together."""
    if limit is None:
        return groups
    taken: list[list[Pair]] = []
    for group in groups:
        if limit <= 0:
            break
        taken.append(group[:limit])
        limit -= len(group)
    return taken


def _shares(groups: list[list[Pair]], data: Data) -> dict[str, list[Pair]]:
    shares = {name: data.shares[name] for name in TABLES if data.shares[name] > 0}
    ends = [round(share * len(groups)) for share in accumulate(shares.values())]
    tables: dict[str, list[Pair]] = {}
    for name, start, end in zip(shares, [0, *ends], ends, strict=False):
        own = groups[start:end]
        if not own:
            raise UserError(
                f"data: {len(groups)} training prompts leave none for {name} (share {shares[name]:g}); "
                "use more pairs, or data.disjoint=false"
            )
        tables[name] = [group[0] for group in own] if name == "ppo" else [row for group in own for row in group]
    return tables
