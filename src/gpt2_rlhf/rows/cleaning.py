"""Keep the rows of a source that can be used, with their lengths, and note every other row under a reason.

No filter drops rows silently: data.json names every dropped row. Training rows of a conversation that is also in the
test set are dropped, so that the test set stays unseen. Over-long prompts lose whole turns from the left.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.launch.progress_line import ProgressLine
from gpt2_rlhf.rows.conversations import Conversation, conversations
from gpt2_rlhf.rows.layout import Split
from gpt2_rlhf.rows.sources import RawRow, describe
from gpt2_rlhf.rows.transcripts import Pair, Unusable, fit_prompts, has_other_markers, pair

_ROWS_AT_ONCE = 500  # few enough for a progress line every five seconds on a busy machine

HELD_OUT_SHARE = 0.1  # of the conversations of subsets without a test file

ANSWER_TOO_LONG = "answer too long"
PROMPT_TOO_LONG = "prompt too long"
SPECIAL_TOKEN = "special token in the text"  # the trainers would take it for the end of the answer
COPY = "same row in another file"  # some data sets hold their rows several times, for several uses
LEAKED = "leaked from train"  # its prompt is in the test set
SAME_CONVERSATION = "same conversation as test"
LEAKED_ONCE_CUT = "leaked from train once cut"  # it differed from the test prompt only in turns that were cut

CountTokens = Callable[[list[str]], list[int]]


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


@dataclass
class Side:
    """The training rows or the test rows of a source."""

    kept: list[Measured] = field(default_factory=list)
    other_markers: list[str] = field(default_factory=list)  # names of the kept rows whose markers were replaced
    turns_cut: int = 0  # how many of the kept rows lost turns of their prompt
    dropped: dict[str, list[str]] = field(default_factory=dict)  # names of rows by reason

    @property
    def rows_read(self) -> int:
        """Number of rows of this side in the source."""
        return len(self.kept) + sum(map(len, self.dropped.values()))

    def drop(self, reason: str, row: str) -> None:
        """Note a row that cannot be used."""
        self.dropped.setdefault(reason, []).append(row)


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
    usable: list[tuple[Split, Pair]] = []
    other_markers: set[str] = set()
    files: dict[tuple[Split, str, str, str], str] = {}  # the first file that holds these texts
    line = ProgressLine("rows read")
    for raw in rows:
        line.add()
        row = _usable(raw, rules)
        if isinstance(row, Pair):
            file = sys.intern(raw.name.rpartition(":")[0])
            if files.setdefault((raw.split, row.prompt, row.chosen, row.rejected), file) == file:
                usable.append((raw.split, row))
                if has_other_markers(raw.values):
                    other_markers.add(raw.name)
                continue
            row = COPY
        (test if raw.split == "test" else train).drop(row, raw.name)
    line.end()
    del files
    usable.sort(key=lambda found: found[0] == "unsplit")  # rows of training and test files come first
    conversation_of = conversations(row.prompt for _, row in usable)
    unsplit = {row.prompt for split, row in usable if split == "unsplit"}
    held_out = _held_out({conversation_of[prompt] for prompt in unsplit})
    pairs: dict[bool, list[Pair]] = {False: [], True: []}  # by whether they are of the test side
    for split, row in usable:
        is_test = split == "test" or (split == "unsplit" and conversation_of[row.prompt] in held_out)
        pairs[is_test].append(row)
    test_prompts = {row.prompt for row in pairs[True]}
    in_test = {conversation_of[prompt] for prompt in test_prompts}
    for row in pairs[False]:
        if conversation_of[row.prompt] in in_test:
            train.drop(LEAKED if row.prompt in test_prompts else SAME_CONVERSATION, row.row)
    _fit("test", test, pairs[True], conversation_of, data, rules)
    cut_test_prompts = {measured.pair.prompt for measured in test.kept}
    unseen = [row for row in pairs[False] if conversation_of[row.prompt] not in in_test]
    _fit("train", train, unseen, conversation_of, data, rules, cut_test_prompts)
    for name, side, other in (("train", train, "test"), ("test", test, "train")):
        side.other_markers = [kept.pair.row for kept in side.kept if kept.pair.row in other_markers]
        if not side.kept:
            reasons = ", ".join(f"{len(names)} {why} ({names[0]})" for why, names in side.dropped.items())
            raise UserError(
                f"data: {describe(data)} leaves no {name} rows of {train.rows_read + test.rows_read} read: "
                f"{reasons or f'all are {other} rows'}; {_remedy(side.dropped.keys())}"
            )
    return Cleaned(train, test, sum(conversation_of[prompt] in held_out for prompt in unsplit))


def _remedy(reasons: Set[str]) -> str:
    limits = {PROMPT_TOO_LONG: "data.max_prompt_tokens", ANSWER_TOO_LONG: "data.max_answer_tokens"}
    remedies = ["correct these rows"] if reasons - limits.keys() else []
    remedies += [f"raise {key}" for reason, key in limits.items() if reason in reasons]
    return " and ".join(remedies) or "rows of other conversations are needed"


def _usable(raw: RawRow, rules: Rules) -> Pair | str:
    """Return the pair in a row, or the reason why the row cannot be used."""
    try:
        row = pair(raw.values, raw.subset, raw.name)
    except Unusable as reason:
        return str(reason)
    texts = (row.prompt, row.chosen, row.rejected)
    if any(token in text for token in rules.special_tokens for text in texts):
        return SPECIAL_TOKEN
    return rules.refusal(row.prompt) or row


def _held_out(found: set[Conversation]) -> set[Conversation]:
    """Return the tenth of the conversations with the smallest hashes: no seed and no order of the rows changes it."""
    by_hash = sorted(found, key=lambda turns: hashlib.sha256("\n".join(turns).encode()).digest())
    return set(by_hash[: math.ceil(HELD_OUT_SHARE * len(by_hash))])


def _fit(
    name: str,
    side: Side,
    pairs: Sequence[Pair],
    conversation_of: Mapping[str, Conversation],
    data: Data,
    rules: Rules,
    other_prompts: Set[str] = frozenset(),
) -> None:
    """Keep the pairs within the limits, with prompts cut where needed; none whose cut prompt is in `other_prompts`."""
    line = ProgressLine(f"{name} rows", len(pairs))
    for start in range(0, len(pairs), _ROWS_AT_ONCE):
        some = pairs[start : start + _ROWS_AT_ONCE]
        # what the first text that is too long decides about a row, the others need not be counted for
        limit, count = data.max_answer_tokens, rules.count_answers
        chosen = _counted_within(limit, {n: row.chosen for n, row in enumerate(some)}, count)
        rejected = _counted_within(limit, {n: some[n].rejected for n in chosen}, count)
        prompts = fit_prompts([some[n].prompt for n in rejected], data.max_prompt_tokens, rules.count_prompts)
        fits = dict(zip(rejected, prompts, strict=True))
        for number, row in enumerate(some):
            if number not in fits:
                side.drop(ANSWER_TOO_LONG, row.row)
            elif (fit := fits[number]) is None:
                side.drop(PROMPT_TOO_LONG, row.row)
            elif fit[0] in other_prompts:
                side.drop(LEAKED_ONCE_CUT, row.row)
            else:
                is_cut = fit[0] != row.prompt
                side.turns_cut += is_cut
                fitted = replace(row, prompt=fit[0]) if is_cut else row
                conversation = conversation_of[row.prompt]
                side.kept.append(Measured(fitted, conversation, fit[1], chosen[number], rejected[number]))
        line.add(len(some))
    line.end()


def _counted_within(limit_tokens: int, texts: Mapping[int, str], count_tokens: CountTokens) -> dict[int, int]:
    """Return the number of tokens of each text that is within the limit."""
    counts = zip(texts, count_tokens(list(texts.values())), strict=True)
    return {number: tokens for number, tokens in counts if tokens <= limit_tokens}
