"""Turn a source's rows into the tables sft, reward, judge, ppo and test that the stages read; count what went where.

Rows that cannot be used are dropped for a named reason and listed in data.json, since a silent filter is how a data set
loses a third of itself unseen. Prompts are divided among the stages, not rows, so that none meets a prompt that another
was trained on: a reward model that PPO asks about its own training prompts is surer there than it has a right to be.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.rows import sources
from gpt2_rlhf.rows.transcripts import Pair, Unusable, fit_prompts, pair

STAGES = ("sft", "reward", "judge", "ppo")
HELD_OUT_SHARE = 0.1  # of the prompts of a subset without a test file

ANSWER_TOO_LONG = "answer too long"
PROMPT_TOO_LONG = "prompt too long"
SPECIAL_TOKEN = "special token in the text"  # in mid-text it would end the answer for the trainers
LEAKED = "leaked from train"
LEAKED_ONCE_CUT = "leaked from train once cut"  # it differed from the test prompt in turns that were cut

CountTokens = Callable[[list[str]], list[int]]
_SCHEMA = pa.schema(
    [(field.name, pa.float64() if field.name == "chosen_probability" else pa.string()) for field in fields(Pair)]
)


@dataclass(frozen=True)
class Prepared:
    """The rows of each table, and the report over the whole source."""

    tables: dict[str, list[Pair]]
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Measured:
    """A pair that is within the limits, with its lengths, all without EOS."""

    pair: Pair
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int


class _Side:
    """The training or the test side of the source while it is cleaned."""

    def __init__(self) -> None:
        self.rows_read = 0
        self.pairs: list[Pair] = []
        self.dropped: dict[str, list[str]] = {}  # row names by reason

    def drop(self, reason: str, row: str) -> None:
        self.dropped.setdefault(reason, []).append(row)

    def drop_prompts(self, prompts: set[str], reason: str) -> None:
        for row in self.pairs:
            if row.prompt in prompts:
                self.drop(reason, row.row)
        self.pairs = [row for row in self.pairs if row.prompt not in prompts]


def prepare(
    data: Data, rows: Iterable[sources.RawRow], count_tokens: CountTokens, special_tokens: Sequence[str] = ()
) -> Prepared:
    """Clean all rows, keep train and test prompts apart, fit them to the limits, and divide them among the stages.

    Raises:
        UserError: a stage or the test set is left without rows.
    """
    train, test, held_out_prompts = _clean(rows, special_tokens)
    train.drop_prompts({row.prompt for row in test.pairs}, LEAKED)
    kept_test, test_cut = _fit(test, data, count_tokens)
    kept_train, train_cut = _fit(train, data, count_tokens)
    test_prompts = {measured.pair.prompt for measured in kept_test}
    for measured in kept_train:
        if measured.pair.prompt in test_prompts:
            train.drop(LEAKED_ONCE_CUT, measured.pair.row)
    kept_train = [measured for measured in kept_train if measured.pair.prompt not in test_prompts]

    for name, side, kept in (("train", train, kept_train), ("test", test, kept_test)):
        if not kept:
            reasons = ", ".join(f"{len(names)} {why} ({names[0]})" for why, names in side.dropped.items())
            raise UserError(
                f"data: {sources.describe(data)} leaves no {name} rows of {side.rows_read} read"
                f"{': ' if reasons else ''}{reasons}; mend these rows, or raise data.max_prompt_tokens "
                "and data.max_answer_tokens"
            )
    tables = divide([measured.pair for measured in kept_train], data)
    tables["test"] = _shuffled([measured.pair for measured in kept_test], data)[: data.test_pairs]
    report = {
        "source": sources.describe(data),
        "held_out_prompts": held_out_prompts,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_answer_tokens": data.max_answer_tokens,
        "train": _side_report(train, kept_train, train_cut),
        "test": _side_report(test, kept_test, test_cut),
        "tables": {
            name: {"pairs": len(pairs), "prompts": len({row.prompt for row in pairs})} for name, pairs in tables.items()
        },
        "subsets": _subset_report({"train": kept_train, "test": kept_test}),
    }
    return Prepared(tables, report)


def divide(pairs: Sequence[Pair], data: Data) -> dict[str, list[Pair]]:
    """The training rows of each stage: shares of the prompts, shuffled by `data.seed`; for PPO each prompt once.

    Raises:
        UserError: there are too few prompts to give each stage some.
    """
    by_prompt: dict[str, list[Pair]] = {}
    for row in pairs:
        by_prompt.setdefault(row.prompt, []).append(row)
    groups = list(by_prompt.values())
    random.Random(data.seed).shuffle(groups)
    groups = _first_pairs(groups, data.train_pairs)
    if not data.disjoint:
        whole = [row for group in groups for row in group]
        return {"sft": whole, "reward": whole, "ppo": [group[0] for group in groups]}
    tables: dict[str, list[Pair]] = {}
    share_before = 0.0
    for name in [name for name in STAGES if data.shares[name] > 0]:
        share_after = share_before + data.shares[name]
        own = groups[round(share_before * len(groups)) : round(share_after * len(groups))]
        if not own:
            raise UserError(
                f"data: {len(groups)} training prompts leave none for {name} (share {data.shares[name]:g}); "
                "use more pairs, or data.disjoint=false"
            )
        tables[name] = [group[0] for group in own] if name == "ppo" else [row for group in own for row in group]
        share_before = share_after
    return tables


def _clean(rows: Iterable[sources.RawRow], special_tokens: Sequence[str]) -> tuple[_Side, _Side, int]:
    """Both sides with their usable pairs, and how many prompts were held out for want of a test file."""
    train, test, unsplit = _Side(), _Side(), _Side()
    sides = {"train": train, "test": test, "unsplit": unsplit}
    for raw in rows:
        side = sides[raw.split]
        side.rows_read += 1
        try:
            usable = pair(raw.values, raw.subset, raw.name)
        except Unusable as reason:
            side.drop(str(reason), raw.name)
            continue
        texts = (usable.prompt, usable.chosen, usable.rejected)
        if any(token in text for token in special_tokens for text in texts):
            side.drop(SPECIAL_TOKEN, raw.name)
        else:
            side.pairs.append(usable)
    held_out = _held_out({row.prompt for row in unsplit.pairs})
    held_out_pairs = [row for row in unsplit.pairs if row.prompt in held_out]
    test.pairs += held_out_pairs
    test.rows_read += len(held_out_pairs)
    train.pairs += [row for row in unsplit.pairs if row.prompt not in held_out]
    train.rows_read += unsplit.rows_read - len(held_out_pairs)
    for reason, names in unsplit.dropped.items():
        train.dropped.setdefault(reason, []).extend(names)
    return train, test, len(held_out)


def _held_out(prompts: set[str]) -> set[str]:
    """The tenth of the prompts whose hashes are smallest: the same ones whatever the seed and the order of the rows."""
    by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    return set(by_hash[: math.ceil(HELD_OUT_SHARE * len(by_hash))])


def _fit(side: _Side, data: Data, count_tokens: CountTokens) -> tuple[list[_Measured], int]:
    """The pairs within the limits, their prompts cut where needed, and how many were cut."""
    chosen_tokens = count_tokens([row.chosen for row in side.pairs])
    rejected_tokens = count_tokens([row.rejected for row in side.pairs])
    fits = fit_prompts([row.prompt for row in side.pairs], data.max_prompt_tokens, count_tokens)
    kept: list[_Measured] = []
    rows_cut = 0
    for row, chosen, rejected, fit in zip(side.pairs, chosen_tokens, rejected_tokens, fits, strict=True):
        if max(chosen, rejected) > data.max_answer_tokens:
            side.drop(ANSWER_TOO_LONG, row.row)
        elif fit is None:
            side.drop(PROMPT_TOO_LONG, row.row)
        else:
            prompt, prompt_tokens = fit
            rows_cut += prompt != row.prompt
            kept.append(_Measured(replace(row, prompt=prompt), prompt_tokens, chosen, rejected))
    return kept, rows_cut


def _first_pairs(groups: list[list[Pair]], limit: int | None) -> list[list[Pair]]:
    """The first groups, the last of them cut so that they hold `limit` pairs in all."""
    if limit is None:
        return groups
    taken: list[list[Pair]] = []
    for group in groups:
        if limit <= 0:
            break
        taken.append(group[:limit])
        limit -= len(group)
    return taken


def _shuffled(pairs: list[Pair], data: Data) -> list[Pair]:
    return random.Random(data.seed).sample(pairs, len(pairs))


def _side_report(side: _Side, kept: Sequence[_Measured], rows_cut: int) -> dict[str, Any]:
    longer = sum(m.chosen_tokens > m.rejected_tokens for m in kept)
    ties = sum(m.chosen_tokens == m.rejected_tokens for m in kept)
    return {
        "read": side.rows_read,
        "dropped": side.dropped,
        "kept": len(kept),
        "turns_cut": rows_cut,
        "tokens": {
            "prompt": _spread([m.prompt_tokens for m in kept]),
            "chosen": _spread([m.chosen_tokens for m in kept]),
            "rejected": _spread([m.rejected_tokens for m in kept]),
        },
        # what a reward model scores that knows nothing but length; a tie is a coin's toss
        "longer_answer_wins": asdict(wilson(longer + ties / 2, len(kept))),
    }


def _spread(values: list[int]) -> dict[str, int]:
    """Nearest-rank median, 95th percentile, and the maximum."""
    ordered = sorted(values)
    return {
        "median": ordered[math.ceil(0.5 * len(ordered)) - 1],
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }


def _subset_report(sides: dict[str, list[_Measured]]) -> dict[str, dict[str, int]]:
    by_side = {name: Counter(measured.pair.subset for measured in kept) for name, kept in sides.items()}
    subsets = sorted(set().union(*by_side.values()))
    return {subset: {name: found[subset] for name, found in by_side.items()} for subset in subsets}
