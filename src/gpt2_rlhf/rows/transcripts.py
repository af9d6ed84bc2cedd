"""Turn one row of a preference data set into prompt, chosen answer and rejected answer, or say why it cannot be.

Anthropic/hh-rlhf holds two conversations a row, meant to share all but the last Assistant turn, which raters compared
(Bai et al. 2022, arXiv:2204.05862); other data sets name the prompt, as text or as messages. All become one form: the
prompt a transcript that ends where the assistant is to speak, the answers one space and then text, so that prompt and
answer tokenize apart exactly as they do together (with the space at the prompt's end, GPT-2's BPE would not).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
_TURNS = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT, "gpt": ASSISTANT, "system": "\n\nSystem:"}

MALFORMED = "malformed row"  # not an object, a column missing or of another type, an unknown role, an empty prompt
NO_ASSISTANT = "no assistant turn"  # the conversation does not end with one
PROMPTS_DIFFER = "prompts differ"
EMPTY = "empty answer"
IDENTICAL = "identical answers"


class Unusable(Exception):
    """This row cannot be used; the message is the reason that the report counts."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison as the stages read it; `row` names where it came from, 1-based: "train.jsonl.gz:12"."""

    prompt: str
    chosen: str
    rejected: str
    subset: str
    row: str
    chosen_probability: float | None  # that `chosen` wins under the utility that made the labels, where known


def pair(values: Any, subset: str, row: str) -> Pair:
    """The comparison in a source's row; a `subset` column of the row's own wins over `subset`.

    Raises:
        Unusable: with the reason.
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
    """Each prompt without the turns on its left that are too many, with its tokens.

    A cut prompt starts with a Human turn. None where the last Human turn alone is over the limit.
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
    """Prompt in its final form and the two answers without the space."""
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
        # data sets with both repeat the conversation in the answers, some with a system turn that the prompt lacks
        if own_prompt is not None and not own_prompt.endswith(shared):
            raise Unusable(PROMPTS_DIFFER)
    if chosen_prompt != rejected_prompt and None not in (chosen_prompt, rejected_prompt):
        raise Unusable(PROMPTS_DIFFER)
    return chosen_prompt or rejected_prompt or shared, chosen_answer, rejected_answer


def _conversation(value: Any) -> tuple[str | None, str]:
    """A conversation's prompt and its last Assistant turn; the prompt is None for an answer alone."""
    if isinstance(value, list):
        turns = _turns(value)
        if not turns or turns[-1][0] != ASSISTANT:
            raise Unusable(NO_ASSISTANT)
        return (_rendered(turns[:-1]) + ASSISTANT if len(turns) > 1 else None), turns[-1][1]
    text = _text(value)
    if not _is_transcript(text):
        if HUMAN in text or ASSISTANT in text:
            raise Unusable(NO_ASSISTANT)  # an answer that plays on alone: both sides' turns
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
    """Whether it opens with a Human turn, or has a Human turn before one of the Assistant."""
    if text.lstrip().startswith(HUMAN.lstrip()):
        return True
    return 0 <= text.find(HUMAN) < text.rfind(ASSISTANT)


def _with_turn_start(text: str) -> str:
    """The transcript opening with the blank line that every turn opens with."""
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
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape and no tokenizer can read
        raise Unusable(MALFORMED) from None
    return value.replace("\r\n", "\n")


def _probability(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unusable(MALFORMED) from None
