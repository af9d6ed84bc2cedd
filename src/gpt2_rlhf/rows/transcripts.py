"""Turn one row of a preference data set into prompt, chosen answer and rejected answer, or give the reason why not.

A row of Anthropic/hh-rlhf holds two conversations that should differ only in the last Assistant turn, which raters
compared (Bai et al. 2022, arXiv:2204.05862). Other data sets have a prompt column, as text or as messages. All become
one form: the prompt is a transcript that ends with "Assistant:", an answer is one space and then text. The space is
part of the answer because GPT-2's BPE then gives prompt and answer the same tokens apart as together.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpt2_rlhf.models.templates import ASSISTANT, HUMAN, SYSTEM

_TURNS = {  # the marker of a message by its role
    **dict.fromkeys(("user", "human", "prompter"), HUMAN),
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), ASSISTANT),
    "system": SYSTEM,
}
_PROMPTS = ("prompt", "question", "instruction", "conversations")  # columns, of which a row fills one
COLUMNS = (*_PROMPTS, "input", "system", "chosen", "rejected", "subset", "chosen_probability")  # that `pair` reads

# the markers that texts use for the two sides; "#" or "<|" may precede the name, and ":" or "|>" follows it
_SIDES = {
    **dict.fromkeys(("human", "user"), "assistant|ai|bot"),
    "question": "answer",
    "instruction": "response",
    "q": "a",
}
_MARKER = r"(?:#+ *|<\|)?({names})(?: *:|\|>)"
_FIRST_MARKER = re.compile(rf"^[ \t]*{_MARKER.format(names='|'.join(_SIDES))}", re.IGNORECASE | re.MULTILINE)
_WRITTEN_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")  # as CSV files have them

NO_ASSISTANT = "no assistant turn"  # the conversation does not end with one

CountTokens = Callable[[list[str]], list[int]]


class Unusable(Exception):
    """The row cannot be used; the message is the reason under which the row report counts it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison as the stages read it; `row` names its place in the source, such as "train.jsonl.gz:12"."""

    prompt: str
    chosen: str
    rejected: str
    subset: str
    row: str
    chosen_probability: float | None  # that `chosen` wins, by the utility behind the labels; None: unknown


def pair(values: Any, subset: str, row: str) -> Pair:
    """Return the comparison in a source's row; a `subset` column of the row replaces `subset`.

    Raises:
        Unusable: gives the reason.
    """
    if not isinstance(values, Mapping):
        raise Unusable("malformed row")
    shared = _prompt(values)
    chosen_prompt, chosen = _conversation(values.get("chosen"), "chosen", shared)
    rejected_prompt, rejected = _conversation(values.get("rejected"), "rejected", shared)
    prompts = [prompt for prompt in (chosen_prompt, rejected_prompt) if prompt is not None]
    if shared is None and not prompts:
        raise Unusable("no prompt (expected a column prompt, question or instruction, or transcripts)")
    has_too_few = shared is None and len(prompts) < 2
    # some data sets repeat the prompt in the answers, a few with a system turn that the prompt column lacks
    if has_too_few or len(set(prompts)) > 1 or not all(prompt.endswith(shared or "") for prompt in prompts):
        raise Unusable("prompts differ")
    if not chosen or not rejected:
        raise Unusable("empty answer")
    if chosen == rejected:
        raise Unusable("identical answers")
    prompt = prompts[0] if prompts else str(shared)
    system, own_subset = values.get("system"), values.get("subset")
    if system and not prompt.startswith(SYSTEM):
        prompt = f"{SYSTEM} {_text(system, 'system').strip()}{prompt}"
    return Pair(
        prompt=prompt,
        chosen=f" {chosen}",
        rejected=f" {rejected}",
        subset=_text(own_subset, "subset") if isinstance(own_subset, str) and own_subset else subset,
        row=row,
        chosen_probability=_probability(values.get("chosen_probability")),
    )


def has_other_markers(values: Mapping[str, Any]) -> bool:
    """Return whether the row marks its turns in another way, with markers that `pair` replaces by ours."""
    column = next((column for column in _PROMPTS if values.get(column) is not None), "chosen")
    text = values.get(column)
    if not isinstance(text, str):
        return False
    text = text.replace("\r\n", "\n").strip()
    return _with_turns(text, is_prompt=column != "chosen").lstrip() != text


def fit_prompts(prompts: Sequence[str], limit_tokens: int, count_tokens: CountTokens) -> list[tuple[str, int] | None]:
    """Return each prompt with its number of tokens, after cutting as many turns from its left as the limit requires.

    A cut prompt starts with a Human turn. None stands for a prompt whose last Human turn alone is over the limit.
    """
    distinct = list(dict.fromkeys(prompts))  # several pairs may share a prompt
    found = {
        prompt: (prompt, tokens) if tokens <= limit_tokens else _cut(prompt, limit_tokens, count_tokens)
        for prompt, tokens in zip(distinct, count_tokens(distinct), strict=True)
    }
    return [found[prompt] for prompt in prompts]


def _cut(prompt: str, limit_tokens: int, count_tokens: CountTokens) -> tuple[str, int] | None:
    @cache
    def tokens_from(start: int) -> int:
        return count_tokens([prompt[start:]])[0]

    starts = [found.start() for found in re.finditer(HUMAN, prompt) if found.start() > 0]
    # bisection, since counting again for each turn takes minutes for a prompt of thousands of turns
    first = bisect_left(starts, True, key=lambda start: tokens_from(start) <= limit_tokens)
    return (prompt[starts[first] :], tokens_from(starts[first])) if first < len(starts) else None


def _conversation(value: Any, column: str, shared: str | None) -> tuple[str | None, str]:
    """Return a conversation's prompt and its last Assistant turn; the prompt is None for an answer alone."""
    if isinstance(value, (list, Mapping)):
        turns = _turns(value, column)
        if not turns or turns[-1][0] != ASSISTANT:
            raise Unusable(NO_ASSISTANT)
        return (_rendered(turns[:-1]) + ASSISTANT if len(turns) > 1 else None), turns[-1][1]
    text = _text(value, column)
    if shared is None or text.lstrip().startswith(HUMAN.lstrip()):
        text = _with_turns(text, is_prompt=False)
    if not _is_transcript(text, with_opening=shared is None):
        return None, _one_turn(text, ASSISTANT)
    head, marker, answer = text.rpartition(ASSISTANT)
    if not marker or HUMAN in answer:
        raise Unusable(NO_ASSISTANT)
    return head + ASSISTANT, answer.strip()


def _prompt(values: Mapping[str, Any]) -> str | None:
    """Return the prompt column of a row in its final form; None for a row without one."""
    filled = [column for column in _PROMPTS if values.get(column) is not None]
    if not filled:
        return None
    column, *more = filled
    if more and column != "prompt":
        raise Unusable(f"both {column} and {more[0]}, and no prompt")
    value = values[column]
    if isinstance(value, (list, Mapping)):
        turns = _turns(value, column)
        if not turns or turns[-1][0] == ASSISTANT:
            raise Unusable(f"no human turn at the end of {column}")
        return _rendered(turns) + ASSISTANT
    text = _text(value, column).rstrip()
    if column == "instruction" and values.get("input"):  # the two parts of a prompt in the layout of Alpaca
        text = f"{text}\n\n{_text(values['input'], 'input').strip()}"
    if not text:
        raise Unusable(f"empty {column}")
    text = _with_turns(text, is_prompt=True)
    if not _is_transcript(text):
        return f"{HUMAN} {text.lstrip()}{ASSISTANT}"
    return text.removesuffix(ASSISTANT) + ASSISTANT


def _with_turns(text: str, is_prompt: bool) -> str:
    """Return a text that marks its turns in another way, such as "User: ... Assistant:", with our markers.

    Text before the first turn becomes a System turn. A text without a marker of both sides stays as it is, but for the
    blank line that a Human turn starts with.

    is_prompt: the text ends with a marker of the assistant; otherwise its last marker starts a line.
    """
    if text.lstrip().startswith(HUMAN.lstrip()):
        text = f"\n\n{text.lstrip()}"
    if text.endswith(ASSISTANT) if is_prompt else ASSISTANT in text:
        return text
    first = _FIRST_MARKER.search(text)
    if first is None:
        return text
    space, end = (r"\s{1,9}", r"\Z") if is_prompt else (r"\s{0,3}\n\s{0,5}", "")
    opening, turns = text[: first.start()].strip(), text[first.end() :]
    sides = {ASSISTANT: _SIDES[first[1].lower()], HUMAN: first[1]}
    patterns = {marker: _MARKER.format(names=name) for marker, name in sides.items()}
    # bounded repeats, so that the time is linear in the length of the text
    last = re.match(rf"(?s:.*\S)({space}){patterns[ASSISTANT]}{end}", turns, re.IGNORECASE)
    if last is None:
        return text
    between = r"\n\s{0,5}" if "\n" in last[1] else r"\s{1,9}"  # turns start on a line of their own, or follow a space
    for marker, pattern in patterns.items():
        turns = re.sub(rf"{between}{pattern}\s*", f"{marker} ", turns, flags=re.IGNORECASE)
    return f"{SYSTEM} {opening}" * bool(opening) + f"{HUMAN} {turns.strip()}"


def _is_transcript(text: str, with_opening: bool = True) -> bool:
    """Return whether the text starts with a Human turn, or has a Human turn before an Assistant turn.

    with_opening: text may precede the first Human turn; otherwise only a System turn may.
    """
    may_open = with_opening or text.lstrip().startswith(SYSTEM.lstrip())
    return text.startswith(HUMAN) or (may_open and 0 <= text.find(HUMAN) < text.rfind(ASSISTANT))


def _turns(messages: Any, column: str) -> list[tuple[str, str]]:
    """Return the marker and the text of each message; a mapping is one message."""
    turns = []
    for message in [messages] if isinstance(messages, Mapping) else messages:
        role = _first(message, "role", "from") if isinstance(message, Mapping) else None
        if not isinstance(role, str):
            raise Unusable(f"a message without role in {column}")
        if role.lower() not in _TURNS:
            raise Unusable(f"unknown role {role[:20]!r} in {column}")
        content = _first(message, "content", "value")
        if isinstance(content, list):  # parts, each with its type
            content = "".join(
                _text(part.get("text") if isinstance(part, Mapping) else part, f"a part of {column}")
                for part in content
            )
        marker = _TURNS[role.lower()]
        turns.append((marker, _one_turn(_text(content, f"a message of {column}"), marker)))
    return turns


def _first(values: Mapping[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _one_turn(text: str, marker: str) -> str:
    """Return the text of a turn without the marker that it may start with; refuse markers of more turns."""
    text = f"\n\n{text.strip()}".removeprefix(marker)
    if HUMAN in text or ASSISTANT in text:
        raise Unusable("a turn inside a message or an answer")
    return text.strip()


def _rendered(turns: list[tuple[str, str]]) -> str:
    return "".join(f"{marker} {text}" for marker, text in turns)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f"no text in {column}")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: valid in JSON, but no tokenizer can encode it
        raise Unusable(f"half a character in {column}") from None
    if _WRITTEN_MESSAGES.match(value):
        raise Unusable(f"messages written as one string in {column}")
    return value.replace("\r\n", "\n")


def _probability(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        probability = float(value)
    except (TypeError, ValueError, OverflowError):
        probability = -1.0
    if not 0 <= probability <= 1:
        raise Unusable("no probability in chosen_probability")
    return probability
