"""A reward of one's own: PPO raises this score instead of the reward model's.

    make pipeline ppo.reward.function=examples.custom_reward:score

It asks for short answers, the opposite of what the bundled reward model prefers. PPO raises what is written here and
nothing that was only meant: without the second term, twelve times the same word would be a perfect answer.
"""

from collections.abc import Sequence

WORDS = 12


def score(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Return a score for each answer: 1 for twelve different words, less the farther it is from that."""
    return [_score(answer.split()) for answer in answers]


def _score(words: list[str]) -> float:
    too_many_or_few = abs(len(words) - WORDS) / WORDS
    repeated = 1 - len(set(words)) / max(1, len(words))
    return 1 - too_many_or_few - repeated
