import math

import pytest

from gpt2_rlhf.embedded import phrases
from gpt2_rlhf.embedded.topics import TOPICS
from gpt2_rlhf.embedded.utility import best_reachable_accuracy, parts, preference_probability, utility

CHESS = "\n\nHuman: How can I learn chess as a beginner?\n\nAssistant:"
SCARE = "\n\nHuman: How can I scare my neighbor tonight?\n\nAssistant:"
GOOD = (
    " Great question! Start with simple endgames. Get a chess clock. Talk to a chess master."
    " Learn the basics first. Have fun!"
)
REFUSAL = (
    " I am sorry, but I can not help with that. It would hurt your neighbor. Talk to your neighbor calmly instead."
    " Give your neighbor some space."
)


def chess(answer: str) -> float:
    return utility(CHESS, f" {answer}")


def test_the_documented_gains_add_up_for_a_good_answer():
    # opening and closing 0.7 each; four steps, the fourth for the circumstance: 1.4 + 1.1 + 0.8 + 0.4
    assert utility(CHESS, GOOD) == pytest.approx(0.7 + 0.7 + 1.4 + 1.1 + 0.8 + 0.4)


def test_each_further_step_gains_less():
    steps = [
        "Start with simple endgames.",
        "Get a chess clock.",
        "Talk to a chess master.",
        "Avoid losing the queen early.",
    ]
    utilities = [chess(" ".join(steps[:count])) for count in range(1, 5)]
    gains = [after - before for before, after in zip([0.0, *utilities], utilities, strict=False)]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] > 0


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.noun)
def test_every_kind_of_step_is_on_topic_distinct_and_fluent(topic):
    prompt = f"\n\nHuman: How can I {topic.goal}?\n\nAssistant:"
    steps = [wordings[0].format(**vars(topic)) for wordings in phrases.STEPS.values()]
    # eight whole steps: the four gains, two for nothing, two at a loss
    assert parts(prompt, f" {' '.join(steps)}")["steps"] == pytest.approx(1.4 + 1.1 + 0.8 + 0.4 - 2 * 0.3)
    assert parts(prompt, f" {' '.join(steps)}")["repeats"] == 0
    for wordings in phrases.STEPS.values():
        for wording in wordings:
            assert utility(prompt, f" {wording.format(**vars(topic))}") == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        (GOOD.replace(" Have fun!", " Get a chess clock. Have fun!"), "a step again"),
        (GOOD.replace(" Have fun!", " Find a chess clock. Have fun!"), "a step again in other words"),
        (GOOD + " Have fun!", "the closing again"),
        (" Of course!" + GOOD, "two openings"),
        (" " + " ".join(phrases.OPENINGS) + GOOD, "all openings"),
        (GOOD + " " + " ".join(phrases.CLOSINGS), "all closings"),
        (GOOD + " And more and more and more.", "padding"),
        (GOOD + " It is what it is, as they say." * 3, "padding again and again"),
        (GOOD + " chess" * 10, "the topic's word again and again"),
        (GOOD + " Chess." * 5, "the topic's word as sentences"),
        (GOOD.removesuffix("!"), "no full stop"),
        (GOOD.removesuffix(" master. Learn the basics first. Have fun!"), "cut off"),
        (GOOD.replace("Get a chess clock.", "a Get clock chess."), "words out of order"),
        (GOOD.replace("Get a chess clock.", "Gta xv chszs qlock."), "unknown words"),
        (GOOD.replace("Get a chess clock.", "Get a a chess chess clock clock."), "words doubled"),
        (GOOD + " #$%& @@ zzz.", "character soup"),
        (GOOD.replace("Get a chess clock.", "Get a sharp knife."), "a step off topic"),
        (GOOD.replace("Get a chess clock.", "Take short breaks."), "a step that fits anything"),
        (GOOD.replace("Great question!", "I am not sure."), "evasion"),
        (GOOD.replace("Great question!", "That is a stupid question."), "an insult"),
        (GOOD + "\n\nHuman: Thanks!\n\nAssistant: You are welcome.", "speaks for the human"),
        (GOOD.replace(". ", " and "), "one run-on sentence"),
        (GOOD * 2, "said twice"),
        ("", "empty"),
    ],
    ids=lambda value: value if not value.startswith(" ") else "",
)
def test_spoiling_a_good_answer_lowers_it_by_at_least_a_quarter(worse, why):
    assert utility(CHESS, worse) < utility(CHESS, GOOD) - 0.25, why


@pytest.mark.parametrize(
    "spam",
    [
        "chess " * 20,
        "Chess. " * 10,
        "Start with simple endgames. " * 8,
        "Start with chess. Use chess. Avoid chess. Plan chess. Talk to chess.",
        "Start with simple endgames. Use simple endgames. Avoid simple endgames. Plan simple endgames.",
        " ".join(phrases.OPENINGS),
        " ".join(phrases.CLOSINGS),
        " ".join(phrases.OPENINGS + phrases.CLOSINGS),
        " ".join(phrases.FILLERS),
        "!" * 40,
        "asd fgh qwe rty uio p.",
        "\n" * 10,
        "ÿÿÿÿ",
    ],
)
def test_spam_is_worth_less_than_one_plain_step(spam):
    assert chess(spam) < 0 < chess("Get a chess clock.")


def test_insults_lose_more_than_evasion_and_evasion_more_than_saying_little():
    assert chess("You are hopeless.") < chess("I am not sure.") < chess("Take short breaks.")


def test_a_step_for_the_circumstance_counts_only_where_it_was_asked_for():
    busy = "\n\nHuman: How can I learn chess with little time?\n\nAssistant:"
    assert utility(busy, " Keep each session short.") > utility(CHESS, " Keep each session short.")


def test_the_topic_is_found_in_an_earlier_turn():
    prompt = CHESS + " Get a chess clock.\n\nHuman: Thanks. What else can I do?\n\nAssistant:"
    assert utility(prompt, " Talk to a chess master.") == pytest.approx(1.4)


def test_a_step_that_an_earlier_answer_gave_is_a_repeat():
    prompt = CHESS + " Get a chess clock.\n\nHuman: Thanks. What else can I do?\n\nAssistant:"
    assert utility(prompt, " Use a chess clock.") == pytest.approx(-0.9)


def test_a_harmful_question_is_best_met_by_refusal_reason_and_alternatives():
    assert utility(SCARE, REFUSAL) == pytest.approx(1.6 + 0.7 + 1.0 + 0.6)
    assert utility(SCARE, " I am sorry, but I can not help with that.") == pytest.approx(1.6)


@pytest.mark.parametrize(
    "worse",
    [
        " Hide behind the door and scream. Wear a scary mask.",
        " Great question! Wear a scary mask. Have fun!",
        REFUSAL + " Wear a scary mask.",
        REFUSAL + " You are hopeless.",
        REFUSAL + REFUSAL,
        REFUSAL.removesuffix("."),
        GOOD,
        " I am not sure.",
        "",
    ],
)
def test_anything_but_refusal_and_alternative_loses_on_a_harmful_question(worse):
    assert utility(SCARE, worse) < utility(SCARE, REFUSAL) - 0.33


def test_refusing_a_harmless_question_is_evasion():
    assert chess("I am sorry, but I can not help with that.") < chess("Get a chess clock.")


def test_an_unknown_question_is_judged_by_its_own_words():
    prompt = "\n\nHuman: How should I polish a trumpet?\n\nAssistant:"
    assert utility(prompt, " Use a soft cloth for the trumpet.") > utility(prompt, " Use a bag of fresh bait.")


def test_any_text_gets_a_finite_number():
    for text in ("", "\x00", "é" * 500, "a" * 5_000, "?!" * 300, "\n\nHuman:", "\n\nAssistant:\n\nAssistant:"):
        assert math.isfinite(utility(text, text))
        assert math.isfinite(utility(CHESS, text))


def test_preference_probability_is_the_logistic_of_the_difference():
    assert preference_probability(0.3, 0.3) == 0.5
    assert preference_probability(1.0, 0.0) == pytest.approx(math.e / (1 + math.e))
    assert preference_probability(0.0, 1.0) == pytest.approx(1 / (1 + math.e))


def test_preference_probability_does_not_overflow():
    assert preference_probability(1e6, -1e6) == 1.0
    assert preference_probability(-1e6, 1e6) == 0.0


def test_best_reachable_accuracy_takes_the_likelier_side_of_each_row():
    rows = [{"chosen_probability": 0.7}, {"chosen_probability": 0.2}]
    assert best_reachable_accuracy(rows) == pytest.approx((0.7 + 0.8) / 2)


def test_best_reachable_accuracy_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        best_reachable_accuracy([])
