"""List the words and word triples of the bundled grammar, and which words belong to which topic.

utility.py measures any text by these: a sentence is fluent as far as the grammar makes its word triples.
"""

import re
from collections import Counter
from functools import cache

from gpt2_rlhf.embedded import phrases
from gpt2_rlhf.embedded.topics import TOPICS, Topic

_WORD = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")
_SENTENCE = re.compile(r"[^.!?]*[.!?]+|[^.!?]+$")

_FUNCTION_TEXT = """
a about advice after all am an and any anything are as ask at be because been best better between
big but by can could day do does else evening every everything few find first five for from get give
go good great had has have he hello help here hi him his how i idea ideas if in into is it its just
know learn like look lot make many may me minutes month more morning much my near need never new
next night no not now of off old on one only or other our out outside over own please put question
really same say she should simple small so some something start step take talk talking ten than
thanks that the their them then there these they thing things this three tips to too trip try twenty
two up use very visit visits want was watch way we week weekend were what when where which while who
why will with without words would yes you your check understand long work works word
"""
# Words that say nothing about the subject.
FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())


def words(text: str) -> list[str]:
    """Return lower-case words and single punctuation marks, in order."""
    return [word.lower() for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Return the text cut after each run of full stops, exclamation or question marks; the rest is the last part."""
    return [part.strip() for part in _SENTENCE.findall(text) if part.strip()]


def content(tokens: list[str]) -> frozenset[str]:
    """Return the words about the subject: no function words, no punctuation."""
    return frozenset(token for token in tokens if token[0].isalpha() and token not in FUNCTION_WORDS)


def _topic_sentences(topic: Topic) -> list[str]:
    fields = vars(topic)
    return [wording.format(**fields) for wordings in phrases.STEPS.values() for wording in wordings]


def _topicless_sentences() -> list[str]:
    """Return every fluent sentence that is about no topic; insults count as fluent, padding does not."""
    fixed = [
        *phrases.GENERIC_STEPS,
        *(step for aspect in phrases.ASPECTS for step in aspect.steps),
        *phrases.OPENINGS,
        *phrases.CLOSINGS,
        *phrases.EVASIONS,
        *phrases.INSULTS,
        *phrases.REFUSALS,
        *(step for harm in phrases.HARMS for step in harm.steps),
    ]
    about_people = [
        sentence.format(who=who) for sentence in (*phrases.REASONS, *phrases.ALTERNATIVES) for who in phrases.PEOPLE
    ]
    return fixed + about_people


def _answer_sentences() -> list[str]:
    return [sentence for topic in TOPICS for sentence in _topic_sentences(topic)] + _topicless_sentences()


def triples(tokens: list[str]) -> list[tuple[str, str, str]]:
    """Return the word triples of a sentence, with marks for its start and end."""
    marked = ["<", *tokens, ">"]
    return list(zip(marked, marked[1:], marked[2:], strict=False))


@cache
def known_triples() -> frozenset[tuple[str, str, str]]:
    """Return every word triple of the grammar's sentences."""
    return frozenset(triple for sentence in _answer_sentences() for triple in triples(words(sentence)))


@cache
def known_words() -> frozenset[str]:
    """Return every word and punctuation mark of the grammar's answers."""
    return frozenset(word for sentence in _answer_sentences() for word in words(sentence))


def brokenness(tokens: list[str]) -> float:
    """Return how far a sentence is from one that the grammar could make: 0 fluent, 1 random words or characters.

    Unknown words are one half of it, unknown word triples the other. A fifth of the triples may be unknown at no cost,
    since a phrase in another sentence than its own is still good English.
    """
    if not tokens:
        return 1.0
    strange_words = sum(token not in known_words() for token in tokens) / len(tokens)
    found = triples(tokens)
    strange_triples = sum(triple not in known_triples() for triple in found) / len(found)
    return 0.5 * strange_words + 0.5 * max(0.0, strange_triples - 0.2) / 0.8


@cache
def topic_words() -> dict[Topic, frozenset[str]]:
    """Return the words that distinguish each topic: those of its phrases that few topics and no other sentence have."""
    wordings = [phrases.SLOT.sub("", wording) for kind in phrases.STEPS.values() for wording in kind]
    common = {word for sentence in (*wordings, *_topicless_sentences()) for word in words(sentence)}
    owned = {topic: content(words(" ".join(topic.phrases()))) - common for topic in TOPICS}
    owners = Counter(word for found in owned.values() for word in found)
    return {topic: frozenset(w for w in found if owners[w] <= 2) for topic, found in owned.items()}


def topic_of(question: str) -> Topic | None:
    """Return the topic of a question: by its goal, else by the most words in common; None if it has none."""
    tokens = words(question)
    spaced = f" {' '.join(tokens)} "
    for topic in TOPICS:
        if f" {topic.goal.lower()} " in spaced:
            return topic
    asked = content(tokens)
    best = max(TOPICS, key=lambda topic: len(topic_words()[topic] & asked))
    return best if topic_words()[best] & asked else None
