"""Turn one row of a preference data set into prompt, chosen answer and rejected answer, or give the reason why not.

A row of Anthropic/hh-rlhf holds two conversations that should differ only in the last Assistant turn, which raters
compared (Bai et al. 2022, arXiv:2204.05862). Other data sets have a prompt column, as text or as messages. All become
one form: the prompt is a transcript that ends with "Assistant:", an answer is one space and then text. The space is
part of the answer because GPT-2's BPE then gives prompt and answer the same tokens apart as together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_TURNS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": "\n\nSystem:"}

MALFORMED = "malformed row"  # not an object, a missing column, a wrong type, an unknown role, an empty prompt
NO_ASSISTANT = "no assistant turn"  # the conversation does not end with one
PROMPTS_DIFFER = "prompts differ"
EMPTY = "empty answer"
IDENTICAL = "identical answers"


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
        raise Unusable(MALFORMED)
    prompt, chosen, rejected = _texts(values.get("prompt"), values.get("chosen"), values.get("rejected"))
    if not chosen or not rejected:
        raise Unusable(EMPTY)
    if chosen == rejected:
        raise Unusable(IDENTICAL)
    own_subset = values.get("subset")
    return Pair(
        prompt=prompt,
        chosen=f" {chosen}",
        rejected=f" {rejected}",
        subset=own_subset if isinstance(own_subset, str) and own_subset else subset,
        row=row,
        chosen_probability=_probability(values.get("chosen_probability")),
    )


def fit_prompts(
    prompts: Sequence[str], limit_tokens: int, count_tokens: Callable[[list[str]], list[int]]
) -> list[tuple[str, int] | None]:
    """Return each prompt with its number of tokens, after cutting as many turns from its left as the limit requires.

    A cut prompt starts with a Human turn. None stands for a prompt whose last Human turn alone is over the limit.
    """
    fitted: dict[str, tuple[str, int] | None] = {}
    candidates = {prompt: prompt for prompt in prompts}
    while candidates:
        counts = count_tokens(list(candidates.values()))
        shorter: dict[str, str] = {}
        for (prompt, candidate), tokens in zip(candidates.items(), counts, strict=True):
            next_turn = candidate.find(HUMAN, 1)
            if tokens <= limit_tokens:
                fitted[prompt] = candidate, tokens
            elif next_turn < 0:
                fitted[prompt] = None
            else:
                shorter[prompt] = candidate[next_turn:]
        candidates = shorter
    return [fitted[prompt] for prompt in prompts]


def _texts(prompt: Any, chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """Return the prompt in its final form, and the two answers without the leading space."""
    chosen_prompt, chosen_answer = _conversation(chosen)
    rejected_prompt, rejected_answer = _conversation(rejected)
    if prompt is None:
        if chosen_prompt is None or rejected_prompt is None:
            raise Unusable(NO_ASSISTANT)
        if chosen_prompt != rejected_prompt:
            raise Unusable(PROMPTS_DIFFER)
        return chosen_prompt, chosen_answer, rejected_answer
    shared = _prompt(prompt)
    for own_prompt in (chosen_prompt, rejected_prompt):
        # some data sets repeat the prompt in the answers, a few with a system turn that the prompt column lacks
        if own_prompt is not None and not own_prompt.endswith(shared):
            raise Unusable(PROMPTS_DIFFER)
    if chosen_prompt != rejected_prompt and None not in (chosen_prompt, rejected_prompt):
        raise Unusable(PROMPTS_DIFFER)
    return chosen_prompt or rejected_prompt or shared, chosen_answer, rejected_answer


def _conversation(value: Any) -> tuple[str | None, str]:
    """Return a conversation's prompt and its last Assistant turn; the prompt is None for an answer alone."""
    if isinstance(value, list):
        turns = _turns(value)
        if not turns or turns[-1][0] != ASSISTANT:
            raise Unusable(NO_ASSISTANT)
        return (_rendered(turns[:-1]) + ASSISTANT if len(turns) > 1 else None), turns[-1][1]
    text = _text(value)
    if not _is_transcript(text):
        if HUMAN in text or ASSISTANT in text:
            raise Unusable(NO_ASSISTANT)  # an answer that goes on with turns of both sides
        return None, text.strip()
    head, marker, answer = text.rpartition(ASSISTANT)
    if not marker or HUMAN in answer:
        raise Unusable(NO_ASSISTANT)
    return _with_turn_start(head) + ASSISTANT, answer.strip()


def _prompt(value: Any) -> str:
    if isinstance(value, list):
        turns = _turns(value)
        if not turns or turns[-1][0] == ASSISTANT:
            raise Unusable(MALFORMED)
        return _rendered(turns) + ASSISTANT
    text = _text(value).rstrip()
    if not text:
        raise Unusable(MALFORMED)
    if not _is_transcript(text):
        return f"{HUMAN} {text.lstrip()}{ASSISTANT}"
    return _with_turn_start(text.removesuffix(ASSISTANT)) + ASSISTANT


def _is_transcript(text: str) -> bool:
    """Return whether the text starts with a Human turn, or has a Human turn before an Assistant turn."""
    if text.lstrip().startswith(HUMAN.lstrip()):
        return True
    return 0 <= text.find(HUMAN) < text.rfind(ASSISTANT)


def _with_turn_start(text: str) -> str:
    """Return the transcript with the blank line that every turn starts with."""
    stripped = text.lstrip()
    return f"\n\n{stripped}" if stripped.startswith(HUMAN.lstrip()) else text


def _turns(messages: list[Any]) -> list[tuple[str, str]]:
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or message.get("role") not in _TURNS:
            raise Unusable(MALFORMED)
        turns.append((_TURNS[message["role"]], _text(message.get("content")).strip()))
    return turns


def _rendered(turns: list[tuple[str, str]]) -> str:
    return "".join(f"{marker} {text}" for marker, text in turns)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Unusable(MALFORMED)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: valid in JSON, but no tokenizer can encode it
        raise Unusable(MALFORMED) from None
    return value.replace("\r\n", "\n")


def _probability(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unusable(MALFORMED) from None
