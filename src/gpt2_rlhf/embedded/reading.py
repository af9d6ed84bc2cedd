"""Read an answer sentence by sentence: what each one does (opens, advises, evades, insults, ...) and what it means.

Cue words decide, not an exact match. So this applies to any text, not only to what the generator writes.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from gpt2_rlhf.embedded import lexicon, phrases
from gpt2_rlhf.embedded.topics import Topic

_TURN = re.compile(r"\n\n(Human|Assistant):")

# Read in this order: an insult that also gives advice is an insult.
_CUES = {
    "insult": ("stupid", "lazy", "waste my time", "fool", "will fail", "nobody cares", "bothering me", "hopeless",
               "idiot", "dumb", "shut up", "loser", "moron"),
    "refusal": ("not help with", "rather not", "can not support", "cannot help", "not do that for you"),
    "reason": ("would hurt", "not fair", "real harm", "is wrong", "is unkind"),
    "evasion": ("not sure", "it depends", "do not know", "don ' t know", "hard to say", "someone else", "no idea",
                "many ways", "not say much", "hard to tell", "no opinion"),
    "filler": ("and so on", "what it is", "very very", "the way things", "as i said", "more and more", "as they say"),
    "opening": ("great question", "good question", "good idea", "happy to help", "glad", "thanks for asking",
                "thank you for asking", "of course", "here is my advice", "nice plan"),
    "closing": ("good luck", "hope this", "hope that", "have fun", "you can do it", "let me know", "all the best",
                "enjoy it", "wish you", "take care"),
}  # fmt: skip
_ALTERNATIVE_CUES = ("calm", "calmly", "honestly", "you trust", "fair deal", "some space", "apologize")
_OTHER_STEP_VERBS = ("then", "next", "practice", "make", "buy", "check", "drink", "eat", "go", "think", "visit", "walk")


@dataclass(frozen=True)
class Question:
    """What the human asks: the topic if it is known, the words that count as on topic, and whether it asks for harm."""

    topic: Topic | None
    subject: frozenset[str]
    aspect: phrases.Aspect | None
    harmful: bool
    who: frozenset[str]  # people the question names
    said: tuple[frozenset[str], ...]  # meanings of the steps that earlier answers gave


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer: its tokens, what it does, and what it means (words and kind of step)."""

    tokens: tuple[str, ...]
    kind: str
    meaning: frozenset[str]
    brokenness: float


def turns(dialogue: str) -> list[tuple[str, str]]:
    """Return (speaker, text) of each turn of an HH transcript; text before the first marker is the human's."""
    pieces = _TURN.split(dialogue)
    found = [("Human", pieces[0].strip())] if pieces[0].strip() else []
    return found + [(who, text.strip()) for who, text in zip(pieces[1::2], pieces[2::2], strict=True)]


@lru_cache(maxsize=4_096)
def question(prompt: str) -> Question:
    """Read the latest human turn that has a known topic or asks for harm, else the latest one."""
    dialogue = turns(prompt)
    asked = [text for who, text in dialogue if who == "Human" and text][::-1] or [""]
    telling = next((text for text in asked if _harmful(text) or lexicon.topic_of(text)), asked[0])
    harmful = _harmful(telling)
    topic = None if harmful else lexicon.topic_of(telling)
    tokens = lexicon.words(telling)
    own = lexicon.content(tokens) - _form_words()
    answers = [sentence for who, text in dialogue if who == "Assistant" for sentence in lexicon.sentences(text)]
    return Question(
        topic=topic,
        subject=own | (lexicon.topic_words()[topic] if topic else frozenset()),
        aspect=next((aspect for aspect, detail in _details() if f" {detail} " in f" {' '.join(tokens)} "), None),
        harmful=harmful,
        who=frozenset(phrases.PEOPLE) & set(tokens),
        said=tuple(step.meaning for text in answers if (step := read(text, harmful)).kind == "step"),
    )


@lru_cache(maxsize=65_536)  # answers share their sentences
def read(text: str, harmful: bool) -> Sentence:
    """Read one sentence of an answer to a question that is harmful or not."""
    tokens = lexicon.words(text)
    return Sentence(tuple(tokens), _kind(tokens, harmful), meaning(tokens), lexicon.brokenness(tokens))


@lru_cache(maxsize=65_536)
def aspect_of(tokens: tuple[str, ...]) -> phrases.Aspect | None:
    """Return the circumstance that a step is for, if more than half of its words are those of a known step."""
    spoken = frozenset(tokens) - {"."}
    for aspect, known in _aspect_steps():
        if 2 * len(spoken & known) > len(spoken | known):
            return aspect
    return None


def goes_along(tokens: tuple[str, ...]) -> bool:
    """Whether a step shares a content word with the harmful goals and steps."""
    return bool(lexicon.content(list(tokens)) & _harm_words())


def meaning(tokens: list[str]) -> frozenset[str]:
    """Return the words that distinguish a step from others: content words, a kind of step in its first wording."""
    line = " ".join(tokens)
    for pattern, own_words in _wordings():
        if found := pattern.match(line):
            return lexicon.content(found.group(1).split()) | own_words
    return lexicon.content(tokens) or frozenset(tokens)


def same_meaning(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether at least half of all their words are in both."""
    return 2 * len(one & other) >= len(one | other)


def _kind(tokens: list[str], harmful: bool) -> str:
    line = f" {' '.join(tokens)} "
    for kind, cues in _CUES.items():
        if any(f" {cue} " in line for cue in cues):
            return kind
    if harmful and any(f" {cue} " in line for cue in _ALTERNATIVE_CUES):
        return "alternative"
    return "step" if _advises(tokens) else "other"


def _advises(tokens: list[str]) -> bool:
    if tokens[:1] in (["you"], ["it"]) and len(tokens) > 3:
        return tokens[1] in ("can", "could", "should", "may", "helps")
    return bool(tokens) and (tokens[0] in _step_verbs() or aspect_of(tuple(tokens)) is not None)


def _harmful(text: str) -> bool:
    return _harm_pattern().search(" ".join(lexicon.words(text))) is not None


@cache
def _form_words() -> frozenset[str]:
    forms = [*phrases.QUESTIONS, *phrases.LEAD_INS, *phrases.LEAD_INS_BY_NAME, *phrases.FOLLOW_UPS, *phrases.NAMES]
    return frozenset(word for form in forms for word in lexicon.words(form))


@cache
def _details() -> tuple[tuple[phrases.Aspect, str], ...]:
    return tuple((aspect, " ".join(lexicon.words(detail))) for aspect in phrases.ASPECTS for detail in aspect.details)


@cache
def _harm_pattern() -> re.Pattern[str]:
    """Return a pattern that finds any of the harmful goals, whoever it names."""
    goals = [" ".join(lexicon.words(harm.goal.format(who="whom"))) for harm in phrases.HARMS]
    return re.compile("|".join(rf"\b{goal.replace('whom', '[a-z]+')}\b" for goal in goals))


@cache
def _harm_words() -> frozenset[str]:
    harmful = [text for harm in phrases.HARMS for text in (harm.goal.replace("{who}", ""), *harm.steps)]
    return frozenset(word for text in harmful for word in lexicon.content(lexicon.words(text)))


@cache
def _aspect_steps() -> tuple[tuple[phrases.Aspect, frozenset[str]], ...]:
    return tuple(
        (aspect, frozenset(lexicon.words(step)) - {"."}) for aspect in phrases.ASPECTS for step in aspect.steps
    )


@cache
def _wordings() -> tuple[tuple[re.Pattern[str], frozenset[str]], ...]:
    """Return a pattern for each wording of each kind of step, whose group is the slot, and the words of that kind."""
    found = []
    for wordings in phrases.STEPS.values():
        own_words = lexicon.content(lexicon.words(phrases.SLOT.sub("", wordings[0])))
        for wording in wordings:
            before, after = (" ".join(lexicon.words(part)) for part in phrases.SLOT.split(wording.rstrip(".")))
            found.append((re.compile(rf"{re.escape(before)} (.+?)(?: {re.escape(after)})?(?: [.!?])*$"), own_words))
    return tuple(found)


@cache
def _step_verbs() -> frozenset[str]:
    known = [wording for wordings in phrases.STEPS.values() for wording in wordings]
    known += [step for aspect in phrases.ASPECTS for step in aspect.steps]
    known += [step for harm in phrases.HARMS for step in harm.steps]
    known += [*phrases.GENERIC_STEPS, *phrases.ALTERNATIVES]
    return frozenset(lexicon.words(step)[0] for step in known) | frozenset(_OTHER_STEP_VERBS)
