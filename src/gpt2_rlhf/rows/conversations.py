"""Name the conversation that each prompt belongs to, so that no conversation is in two tables.

Data sets such as hh-rlhf hold preferences at several depths of one conversation. A prompt in one table would then have
its beginning, and often its answer, in another. Prompts with the same first turn are one conversation. The exception is
a first turn that many conversations share, such as "Hi": it says nothing of what follows, and all of them would have to
be in one table. Such turns are found by what follows them, since many real questions are as short as a greeting.
"""

from collections import defaultdict
from collections.abc import Iterable

from gpt2_rlhf.rows.transcripts import ASSISTANT, HUMAN

MANY = 10  # more different next turns than this follow an opening that is not one conversation

Conversation = tuple[str, ...]  # its first turns, as many as tell it from others


def conversations(prompts: Iterable[str]) -> dict[str, Conversation]:
    """Return the conversation of each prompt. Turns that differ in white space only are the same."""
    turns = {prompt: _turns(prompt) for prompt in prompts}
    found = {prompt: own[:1] for prompt, own in turns.items()}
    while True:
        following: dict[Conversation, set[str]] = defaultdict(set)
        for prompt, opening in found.items():
            following[opening].update(turns[prompt][len(opening) :][:1])
        longer = {
            prompt: turns[prompt][: len(opening) + 1]
            for prompt, opening in found.items()
            if len(following[opening]) > MANY and len(turns[prompt]) > len(opening)
        }
        if not longer:
            return found
        found |= longer


def _turns(prompt: str) -> Conversation:
    """Return what the human says before each turn of the assistant; first comes all that precedes the first answer."""
    first, *later = prompt.removesuffix(ASSISTANT).split(ASSISTANT)
    return tuple(" ".join(turn.split()) for turn in (first, *(part.partition(HUMAN)[2] for part in later)))
