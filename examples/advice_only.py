"""A reward function of one's own: an answer is as good as it has sentences, up to four, that are not a refusal.

It looks helpful and forgets the questions that should be refused. From the repository's root:
make pipeline ppo.reward.function=examples.advice_only:score
"""

import re
from collections.abc import Sequence

ENOUGH = 4  # sentences
REFUSES = re.compile(r"\b(can ?not|will not|won't|can't|sorry|unable)\b", re.IGNORECASE)


def score(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return for each answer how many different sentences it has that refuse nothing, at most ENOUGH."""
    return [float(min(ENOUGH, len(_advice(answer)))) for answer in answers]


def _advice(answer: str) -> set[str]:
    own = answer.partition("\n\nHuman:")[0]
    sentences = {sentence.strip().lower() for sentence in re.split(r"[.!?]", own)}
    return {sentence for sentence in sentences if sentence and not REFUSES.search(sentence)}
