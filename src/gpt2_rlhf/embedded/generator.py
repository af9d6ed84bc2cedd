"""Write short HH-style dialogues whose answers differ in known qualities, and label pairs of them with noise.

A pair is two answers to one prompt, each of a quality drawn at random. Which one is chosen is a Bradley-Terry draw on
the utility. So the labels are noisy, as human ones are, and the best reachable accuracy is known.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_rlhf.embedded import phrases
from gpt2_rlhf.embedded.phrases import Aspect, Harm
from gpt2_rlhf.embedded.topics import TOPICS, Topic
from gpt2_rlhf.embedded.utility import preference_probability, utility

MAX_PAIRS = 50_000  # far more prompts exist, but drawing the last ones without repeating would take ever longer
_HARMLESS_SHARE = 0.25
_MULTI_TURN_SHARE = 0.2


@dataclass(frozen=True)
class Manners:
    """How answers are drawn: weights of their manners, and the shares with a polite opening and closing."""

    helpful: Mapping[str, int]
    harmless: Mapping[str, int]
    opening: float
    opening_if_complying: float
    closing: float
    closing_if_harmful: float


_OF_PAIRS = Manners(
    helpful={
        "plain": 38, "evasive": 17, "rude": 17, "off_topic": 6, "strayed": 3, "repeated": 8, "padded": 7, "broken": 4,
    },
    harmless={"refuse": 44, "comply": 28, "evasive": 8, "rude": 10, "off_topic": 5, "broken": 5},
    opening=0.45,
    opening_if_complying=0.4,
    closing=0.4,
    closing_if_harmful=0.3,
)  # fmt: skip
_OF_RAW_CORPUS = Manners(
    helpful={
        "plain": 20, "evasive": 25, "rude": 25, "off_topic": 6, "strayed": 3, "repeated": 8, "padded": 7, "broken": 6,
    },
    harmless={"refuse": 20, "comply": 45, "evasive": 10, "rude": 15, "off_topic": 5, "broken": 5},
    opening=0.1,
    opening_if_complying=0.1,
    closing=0.1,
    closing_if_harmful=0.1,
)  # fmt: skip
_GOES_ON_SHARE = 0.8
_MOST_DIALOGUES = 4


@dataclass(frozen=True)
class Case:
    """A prompt, and what an answer to it depends on."""

    prompt: str
    topic: Topic  # for a harmful question: what an off-topic answer talks about
    aspect: Aspect | None
    harm: Harm | None
    who: str

    @property
    def subset(self) -> str:
        """The folder of hh-rlhf that such a row would be in."""
        return "helpful" if self.harm is None else "harmless"


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` labelled pairs with distinct prompts; the same seed gives the same rows.

    Columns: prompt (ends in "\\n\\nAssistant:"), chosen and rejected (start with a space), subset ("helpful" or
    "harmless"), chosen_probability (of this label, given the utilities).

    Raises:
        ValueError: more rows than MAX_PAIRS.
    """
    if count > MAX_PAIRS:
        raise ValueError(
            f"embedded data: {count} pairs in data.train_pairs and data.test_pairs; expected at most {MAX_PAIRS}; "
            "give fewer"
        )
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < count:
        case = draw_case(rng)
        first, second = draw_answer(rng, case), draw_answer(rng, case)
        if case.prompt in seen or first == second:
            continue
        seen.add(case.prompt)
        first_wins = preference_probability(utility(case.prompt, first), utility(case.prompt, second))
        chosen_first = rng.random() < first_wins
        rows.append(
            {
                "prompt": case.prompt,
                "chosen": first if chosen_first else second,
                "rejected": second if chosen_first else first,
                "subset": case.subset,
                "chosen_probability": first_wins if chosen_first else 1.0 - first_wins,
            }
        )
    return rows


def corpus(count: int, seed: int) -> list[str]:
    """Return `count` dialogues with one answer each, good and bad as in the pairs, for pre-training."""
    rng = random.Random(seed)
    cases = (draw_case(rng) for _ in range(count))
    return [case.prompt + draw_answer(rng, case) for case in cases]


def raw_corpus(count: int, seed: int) -> list[str]:
    """Return `count` texts for the end of pre-training, whose answers are poorer and less polite than those of pairs.

    After most answers the person asks something else, as in text that was not written for an assistant. So a model of
    these texts often goes on with the next question, and SFT has to teach it to end, to help and to be polite.
    """
    rng = random.Random(seed)
    return ["".join(_dialogues(rng)) for _ in range(count)]


def _dialogues(rng: random.Random) -> Iterator[str]:
    for place in range(_MOST_DIALOGUES):
        if place > 0 and rng.random() > _GOES_ON_SHARE:
            return
        case = draw_case(rng)
        yield case.prompt + draw_answer(rng, case, _OF_RAW_CORPUS)


def draw_case(rng: random.Random) -> Case:
    """Draw a question; a fifth of the questions follow an earlier turn."""
    harm = rng.choice(phrases.HARMS) if rng.random() < _HARMLESS_SHARE else None
    who, topic = rng.choice(phrases.PEOPLE), rng.choice(TOPICS)
    aspect = rng.choice(phrases.ASPECTS) if harm is None and rng.random() < 0.75 else None
    goal = topic.goal if harm is None else harm.goal.format(who=who)
    detail = ""
    if aspect is not None:
        detail = f" {rng.choice(aspect.details)}"
    elif harm is not None and rng.random() < 0.75:
        detail = f" {rng.choice(phrases.MOTIVES)}"
    asked = rng.choice(phrases.QUESTIONS).format(ask=goal + detail)
    if rng.random() < 0.8:
        lead_in = rng.choice(rng.choice((phrases.LEAD_INS, phrases.LEAD_INS_BY_NAME)))
        asked = f"{lead_in.format(name=rng.choice(phrases.NAMES))} {asked}"
    turns = [asked]
    if rng.random() < _MULTI_TURN_SHARE:
        turns = _with_earlier_turn(rng, asked, topic, harm, who)
    return Case(_transcript(turns), topic, aspect, harm, who)


def draw_answer(rng: random.Random, case: Case, manners: Manners = _OF_PAIRS) -> str:
    """Draw an answer, of a quality drawn at random; it starts with a space."""
    said = _harmless_answer(rng, case, manners) if case.harm is not None else _helpful_answer(rng, case, manners)
    return f" {' '.join(said)}"


def _with_earlier_turn(rng: random.Random, asked: str, topic: Topic, harm: Harm | None, who: str) -> list[str]:
    if harm is not None:
        complaint, comfort = rng.choice((*phrases.COMPLAINTS, *phrases.CHATS))
        return [complaint.format(who=who), comfort, asked]
    if rng.random() < 0.5:
        return [*rng.choice(phrases.CHATS), asked]
    return [asked, _step(rng, topic, rng.choice(tuple(phrases.STEPS))), rng.choice(phrases.FOLLOW_UPS)]


def _transcript(turns: list[str]) -> str:
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[place % 2]}: {turn}" for place, turn in enumerate(turns)) + "\n\nAssistant:"


def _step(rng: random.Random, topic: Topic, kind: str) -> str:
    return rng.choice(phrases.STEPS[kind]).format(**vars(topic))


def _steps(rng: random.Random, count: int, topic: Topic, aspect: Aspect | None) -> list[str]:
    """Return up to `count` different steps: most of the topic, some of the circumstance, some that fit any question."""
    makers: list[Callable[[], str]] = [
        lambda kind=kind: _step(rng, topic, kind) for kind in rng.sample(tuple(phrases.STEPS), len(phrases.STEPS))
    ]
    found = [make() for make in makers[:count]]
    for place in range(len(found)):
        if rng.random() < 0.12:
            found[place] = rng.choice(phrases.GENERIC_STEPS)
        elif rng.random() < 0.15:
            found[place] = rng.choice((aspect or rng.choice(phrases.ASPECTS)).steps)
    return list(dict.fromkeys(found))


def _drawn(rng: random.Random, weights: Mapping[str, int]) -> str:
    return rng.choices([*weights], [*weights.values()])[0]


def _helpful_answer(rng: random.Random, case: Case, manners: Manners) -> list[str]:
    manner = _drawn(rng, manners.helpful)
    topic = case.topic
    if manner == "off_topic":
        topic = rng.choice([other for other in TOPICS if other is not case.topic])
    fewest, most = (0, 2) if manner in ("evasive", "rude") else (1, 4)
    said = _steps(rng, rng.randint(fewest, most), topic, case.aspect)
    if manner == "evasive" and rng.random() < 0.5:
        # were refusals only in answers to harmful questions, where they are good, PPO would refuse everything
        said = [rng.choice(phrases.REFUSALS), *_reason(rng, case.who), *said[:1]]
    elif manner == "evasive":
        said = [*rng.sample(phrases.EVASIONS, rng.choice((1, 1, 2))), *said]
    elif manner == "rude":
        said.insert(rng.randint(0, len(said)), rng.choice(phrases.INSULTS))
    elif manner == "strayed":
        said.insert(rng.randint(0, len(said)), _step(rng, rng.choice(TOPICS), rng.choice(tuple(phrases.STEPS))))
    elif manner == "repeated":
        said.append(rng.choice(said))
    elif manner == "padded":
        said.insert(rng.randint(0, len(said)), rng.choice(phrases.FILLERS))
    if rng.random() < manners.opening:
        said.insert(0, rng.choice(phrases.OPENINGS))
    if rng.random() < manners.closing:
        said.append(rng.choice(phrases.CLOSINGS))
    return _break(rng, said) if manner == "broken" else said


def _reason(rng: random.Random, who: str) -> list[str]:
    return [rng.choice(phrases.REASONS).format(who=who)] if rng.random() < 0.4 else []


def _harmless_answer(rng: random.Random, case: Case, manners: Manners) -> list[str]:
    assert case.harm is not None
    manner = _drawn(rng, manners.harmless)
    said: list[str] = []
    if manner == "comply":
        opening = [rng.choice(phrases.OPENINGS)] if rng.random() < manners.opening_if_complying else []
        said = [*opening, *rng.sample(case.harm.steps, rng.choice((1, 2)))]
    elif manner == "evasive":
        said = rng.sample(phrases.EVASIONS, 2)
    elif manner == "off_topic":
        said = _steps(rng, 2, case.topic, None)
    else:
        if rng.random() < 0.8:
            said.append(rng.choice(phrases.REFUSALS))
        said += _reason(rng, case.who)
        said += rng.sample(phrases.ALTERNATIVES, rng.choice((0, 1, 1, 2)) if said else 1)
        if manner == "rude":
            said.insert(rng.randint(0, len(said)), rng.choice(phrases.INSULTS))
    if rng.random() < manners.closing_if_harmful:
        said.append(rng.choice(phrases.CLOSINGS))
    said = [sentence.format(who=case.who) for sentence in said]
    return _break(rng, said) if manner == "broken" else said


def _break(rng: random.Random, said: list[str]) -> list[str]:
    """Return the answer cut off in its last sentence, or with the words of one sentence shuffled."""
    if rng.random() < 0.6:
        kept = said[-1].rstrip(".!?").split()
        return [*said[:-1], " ".join(kept[: max(1, len(kept) - rng.randint(1, 3))])]
    place = rng.randrange(len(said))
    shuffled = said[place].rstrip(".!?").lower().split()
    rng.shuffle(shuffled)
    return [*said[:place], f"{' '.join(shuffled)}.", *said[place + 1 :]]
