"""Keep the rows of a source that can be used, with their lengths, and note every other row under a reason.

No filter drops rows silently: data.json names every dropped row. Training rows of a conversation that is also in the
test set are dropped, so that the test set stays unseen. Over-long prompts lose whole turns from the left.
"""

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.launch.progress_line import counted
from gpt2_rlhf.rows.conversations import Conversation, conversations
from gpt2_rlhf.rows.layout import Split
from gpt2_rlhf.rows.sources import RawRow, describe
from gpt2_rlhf.rows.transcripts import CountTokens, Pair, Unusable, fit_prompts, has_other_markers, pair

_ROWS_AT_ONCE = 128  # counted by one thread; at most tokens._TEXTS_AT_ONCE, above which it would start threads itself

HELD_OUT_SHARE = 0.1  # of the conversations of subsets without a test file

ANSWER_TOO_LONG = "answer too long"
PROMPT_TOO_LONG = "prompt too long"


@dataclass(frozen=True)
class Rules:
    """What a tokenizer says of the texts of a row: their numbers of tokens, and which of them it cannot take."""

    count_prompts: CountTokens
    count_answers: CountTokens
    special_tokens: Sequence[str] = ()  # which no text may contain
    refusal: Callable[[str], str | None] = lambda prompt: None  # why the chat template does not take a prompt


@dataclass(frozen=True, slots=True)
class Measured:
    """A pair within the limits, with its conversation, and its numbers of tokens, all without EOS."""

    pair: Pair
    conversation: Conversation  # of the prompt before it was cut
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int


class _Fit(NamedTuple):
    """What the limits leave of a row: its prompt, cut where needed, and the numbers of tokens."""

    prompt: str
    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int


@dataclass(slots=True)
class _Usable:
    """A usable row, and what `_fit` finds that the limits leave of it, or the reason why it is dropped."""

    split: Split
    pair: Pair
    has_other_markers: bool
    fit: _Fit | str = ANSWER_TOO_LONG
    conversation: Conversation = ()  # named once all rows are read


@dataclass
class Side:
    """The training rows or the test rows of a source."""

    kept: list[Measured] = field(default_factory=list)
    other_markers: list[str] = field(default_factory=list)  # names of the kept rows whose markers were replaced
    turns_cut: int = 0  # how many of the kept rows lost turns of their prompt
    dropped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # names of rows by reason

    @property
    def rows_read(self) -> int:
        """Number of rows of this side in the source."""
        return len(self.kept) + sum(map(len, self.dropped.values()))


@dataclass(frozen=True)
class Cleaned:
    """Both sides of a source; held_out_prompts: the test prompts taken from subsets without a test file."""

    train: Side
    test: Side
    held_out_prompts: int


def clean(data: Data, rows: Iterable[RawRow], rules: Rules) -> Cleaned:
    """Return the usable pairs of all rows, with train and test prompts kept apart and within the limits of `data`.

    Raises:
        UserError: no training rows or no test rows are left.
    """
    train, test = Side(), Side()
    found = _fitted(_usable_rows(rows, rules, train, test), data, rules)
    conversation_of = conversations(one.pair.prompt for one in found)
    for one in found:
        one.conversation = conversation_of[one.pair.prompt]
    unsplit = [one for one in found if one.split == "unsplit"]
    held_out = _held_out({one.conversation for one in unsplit})
    held_out_rows = [one for one in unsplit if one.conversation in held_out]
    test_rows = [one for one in found if one.split == "test"] + held_out_rows
    train_rows = [one for one in found if one.split == "train"]
    train_rows += [one for one in unsplit if one.conversation not in held_out]
    test_prompts = {one.pair.prompt for one in test_rows}
    in_test = {one.conversation for one in test_rows}
    for one in train_rows:
        if one.conversation in in_test:
            reason = "leaked from train" if one.pair.prompt in test_prompts else "same conversation as test"
            train.dropped[reason].append(one.pair.row)
    _keep(test, test_rows)
    unseen = [one for one in train_rows if one.conversation not in in_test]
    _keep(train, unseen, {measured.pair.prompt for measured in test.kept})
    for name, side, other in (("train", train, "test"), ("test", test, "train")):
        if not side.kept:
            reasons = ", ".join(f"{len(names)} {why} ({names[0]})" for why, names in side.dropped.items())
            raise UserError(
                f"data: {describe(data)} leaves no {name} rows of {train.rows_read + test.rows_read} read: "
                f"{reasons or f'all are {other} rows'}; {_remedy(side.dropped.keys())}"
            )
    return Cleaned(train, test, len({one.pair.prompt for one in held_out_rows}))


def _remedy(reasons: Set[str]) -> str:
    limits = {PROMPT_TOO_LONG: "data.max_prompt_tokens", ANSWER_TOO_LONG: "data.max_answer_tokens"}
    remedies = ["correct these rows"] if reasons - limits.keys() else []
    remedies += [f"raise {key}" for reason, key in limits.items() if reason in reasons]
    return " and ".join(remedies) or "rows of other conversations are needed"


def _held_out(found: set[Conversation]) -> set[Conversation]:
    """Return the tenth of the conversations with the smallest hashes: no seed and no order of the rows changes it."""
    by_hash = sorted(found, key=lambda turns: hashlib.sha256("\n".join(turns).encode()).digest())
    return set(by_hash[: math.ceil(HELD_OUT_SHARE * len(by_hash))])


def _usable_rows(rows: Iterable[RawRow], rules: Rules, train: Side, test: Side) -> Iterator[_Usable]:
    """Yield the rows that can be used, and drop the others."""
    files: dict[tuple[Split, str, str, str], str] = {}  # the first file that holds these texts
    for raw in counted("rows read", rows):
        row = _usable(raw, rules)
        if isinstance(row, Pair):
            file = sys.intern(raw.name.rpartition(":")[0])
            if files.setdefault((raw.split, row.prompt, row.chosen, row.rejected), file) == file:
                yield _Usable(raw.split, row, has_other_markers(raw.values))
                continue
            row = "same row in another file"  # some data sets hold their rows several times, for several uses
        (test if raw.split == "test" else train).dropped[row].append(raw.name)


def _usable(raw: RawRow, rules: Rules) -> Pair | str:
    """Return the pair in a row, or the reason why the row cannot be used."""
    try:
        row = pair(raw.values, raw.subset, raw.name)
    except Unusable as reason:
        return str(reason)
    if any(token in text for token in rules.special_tokens for text in (row.prompt, row.chosen, row.rejected)):
        return "special token in the text"  # the trainers would take it for the end of the answer
    return rules.refusal(row.prompt) or row


def _fitted(rows: Iterator[_Usable], data: Data, rules: Rules) -> list[_Usable]:
    """Return all rows with what the limits leave of them; threads count tokens while this one reads rows."""
    threads = ThreadPoolExecutor()
    try:
        batches = iter(lambda: list(islice(rows, _ROWS_AT_ONCE)), [])
        measured = [(threads.submit(_fit, batch, data, rules), len(batch)) for batch in batches]
        results = (batch.result() for batch, _ in measured)
        total = sum(count for _, count in measured)
        return [row for batch in counted("rows measured", results, total, len) for row in batch]
    finally:
        threads.shutdown(cancel_futures=True)  # after an error or Ctrl-C, what was not counted is not needed


def _fit(rows: list[_Usable], data: Data, rules: Rules) -> list[_Usable]:
    """Return the rows, each with what the limits leave of it."""
    # what the first text that is too long decides about a row, the others need not be counted for
    limit, count = data.max_answer_tokens, rules.count_answers
    chosen = _counted_within(limit, {n: row.pair.chosen for n, row in enumerate(rows)}, count)
    rejected = _counted_within(limit, {n: rows[n].pair.rejected for n in chosen}, count)
    prompts = fit_prompts([rows[n].pair.prompt for n in rejected], data.max_prompt_tokens, rules.count_prompts)
    for n, prompt in zip(rejected, prompts, strict=True):
        rows[n].fit = PROMPT_TOO_LONG if prompt is None else _Fit(*prompt, chosen[n], rejected[n])
    return rows


def _keep(side: Side, rows: Sequence[_Usable], other_prompts: Set[str] = frozenset()) -> None:
    """Keep the rows within the limits, with prompts cut where needed; none whose cut prompt is in `other_prompts`."""
    for one in rows:
        row, fit = one.pair, one.fit
        if isinstance(fit, str):
            side.dropped[fit].append(row.row)
        elif fit.prompt in other_prompts:  # it differed from the test prompt only in turns that were cut
            side.dropped["leaked from train once cut"].append(row.row)
        else:
            is_cut = fit.prompt != row.prompt
            side.turns_cut += is_cut
            if one.has_other_markers:
                side.other_markers.append(row.row)
            kept = replace(row, prompt=fit.prompt) if is_cut else row
            side.kept.append(
                Measured(kept, one.conversation, fit.prompt_tokens, fit.chosen_tokens, fit.rejected_tokens)
            )


def _counted_within(limit_tokens: int, texts: Mapping[int, str], count_tokens: CountTokens) -> dict[int, int]:
    """Return the number of tokens of each text that is within the limit."""
    counts = zip(texts, count_tokens(list(texts.values())), strict=True)
    return {number: tokens for number, tokens in counts if tokens <= limit_tokens}
