"""Divide the pairs among the stages: tables sft, reward, judge and ppo for training, and test.

Conversations are divided, not rows, so that no stage gets a prompt that another was trained on, at any depth. Otherwise
the reward model would score answers to its own training prompts in PPO, where it is more confident than on new ones.
"""

import random
from collections.abc import Sequence
from itertools import accumulate

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import TABLES, Data
from gpt2_rlhf.rows.cleaning import Measured
from gpt2_rlhf.rows.conversations import Conversation


def divide(train: Sequence[Measured], test: Sequence[Measured], data: Data) -> dict[str, list[Measured]]:
    """Return the rows of each table, in an order drawn with `data.seed`; the ppo table has each prompt once.

    A share is one of the training pairs. The last conversation of a table is cut to meet it.

    Raises:
        UserError: there are too few training pairs for the shares.
    """
    total = len(train) if data.train_pairs is None else min(data.train_pairs, len(train))
    shares = {name: data.shares[name] for name in TABLES if data.shares[name] > 0} if data.disjoint else {"sft": 1.0}
    ends = [round(share * total) for share in accumulate(shares.values())]
    remaining = iter(_shuffled_by_conversation(train, data.seed))
    tables: dict[str, list[Measured]] = {}
    for name, start, end in zip(shares, [0, *ends], ends, strict=False):
        rows = tables[name] = []
        while len(rows) < end - start and (group := next(remaining, None)):
            rows += (_one_row_a_prompt(group) if name == "ppo" else group)[: end - start - len(rows)]
        if not rows:
            raise UserError(
                f"data: {total} training pairs leave none for {name} (share {shares[name]:g}); "
                "use more pairs, or data.disjoint=false"
            )
    if not data.disjoint:
        tables |= {"reward": tables["sft"], "ppo": _one_row_a_prompt(tables["sft"])}
    return {**tables, "test": random.Random(data.seed).sample(test, len(test))[: data.test_pairs]}


def _shuffled_by_conversation(rows: Sequence[Measured], seed: int) -> list[list[Measured]]:
    """Return the rows of each conversation; conversations with a prompt in common, once it is cut, are one group."""
    groups: dict[Conversation | str, list[Measured]] = {}  # by conversation and by prompt
    for row in rows:
        own = groups.setdefault(row.conversation, [])
        other = groups.setdefault(row.pair.prompt, own)
        own.append(row)
        if other is not own:
            other += own
            for member in own:
                groups[member.conversation] = groups[member.pair.prompt] = other
    found = list({id(group): group for group in groups.values()}.values())
    random.Random(seed).shuffle(found)
    return found


def _one_row_a_prompt(rows: Sequence[Measured]) -> list[Measured]:
    first: dict[str, Measured] = {}
    for row in rows:
        first.setdefault(row.pair.prompt, row)
    return list(first.values())
