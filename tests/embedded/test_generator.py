import functools
import math
import statistics
from typing import Any

import pytest

from gpt2_rlhf.embedded import build, generator, phrases, reading
from gpt2_rlhf.embedded.topics import TOPICS
from gpt2_rlhf.embedded.utility import best_reachable_accuracy, parts, preference_probability, utility
from gpt2_rlhf.models import tokens


@functools.cache  # each worker imports this file, and one runs it
def two_thousand() -> list[dict[str, Any]]:
    return generator.pairs(2_000, seed=5)


def test_the_same_seed_gives_the_same_rows():
    assert generator.pairs(50, seed=1) == generator.pairs(50, seed=1)
    assert generator.pairs(50, seed=1) != generator.pairs(50, seed=2)


def test_more_rows_begin_with_the_rows_of_fewer():
    assert two_thousand()[:30] == generator.pairs(30, seed=5)


def test_no_prompt_comes_twice_in_one_call():
    assert len({row["prompt"] for row in two_thousand()}) == len(two_thousand())


def test_two_seeds_share_at_most_one_prompt_in_fifty():
    other = {row["prompt"] for row in generator.pairs(2_000, seed=6)}
    assert sum(row["prompt"] in other for row in two_thousand()) <= len(two_thousand()) / 50


def test_there_are_more_than_fifty_thousand_prompts_of_each_subset():
    details = 1 + sum(len(aspect.details) for aspect in phrases.ASPECTS)
    lead_ins = 1 + len(phrases.LEAD_INS) + len(phrases.LEAD_INS_BY_NAME) * len(phrases.NAMES)
    helpful = len(TOPICS) * len(phrases.QUESTIONS) * details * lead_ins
    harmless = len(phrases.HARMS) * len(phrases.PEOPLE) * len(phrases.QUESTIONS) * lead_ins
    assert helpful > 50_000
    assert harmless > 50_000


def test_the_grammar_has_enough_topics_questions_and_steps():
    assert len(TOPICS) >= 40
    assert len(phrases.QUESTIONS) >= 10
    assert len(phrases.STEPS) >= 8
    assert min(map(len, (phrases.OPENINGS, phrases.CLOSINGS, phrases.EVASIONS, phrases.INSULTS))) >= 6


def test_topics_and_their_phrases_are_distinct():
    found = [phrase for topic in TOPICS for phrase in topic.phrases()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("goal", ["improve my communication skills", "learn machine learning"])
def test_the_questions_that_people_try_first_are_in_distribution(goal):
    assert goal in {topic.goal for topic in TOPICS}
    question = reading.question(f"\n\nHuman: How can I {goal} effectively?\n\nAssistant:")
    assert question.topic is not None
    assert question.topic.goal == goal
    assert question.aspect is not None


def test_rows_are_hh_transcripts_with_answers_that_differ():
    for row in two_thousand():
        assert row["prompt"].startswith("\n\nHuman: ")
        assert row["prompt"].endswith("\n\nAssistant:")
        assert row["chosen"] != row["rejected"]
        for answer in (row["chosen"], row["rejected"]):
            assert answer == f" {answer.strip()}"
            assert "\n" not in answer


def test_a_quarter_of_the_rows_is_harmless_and_a_fifth_has_an_earlier_turn():
    harmless = statistics.mean(row["subset"] == "harmless" for row in two_thousand())
    multi_turn = statistics.mean(row["prompt"].count("\n\nHuman:") > 1 for row in two_thousand())
    # within four standard errors of a proportion over 2,000 draws
    assert abs(harmless - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2_000)
    assert abs(multi_turn - 0.20) < 4 * math.sqrt(0.20 * 0.80 / 2_000)
    assert {row["subset"] for row in two_thousand()} == {"helpful", "harmless"}


def test_the_subset_is_what_the_utility_reads_off_the_prompt():
    for row in two_thousand():
        assert reading.question(row["prompt"]).harmful == (row["subset"] == "harmless")


def test_the_label_probability_is_that_of_the_hidden_utilities():
    for row in two_thousand()[:300]:
        chosen, rejected = (utility(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        assert row["chosen_probability"] == pytest.approx(preference_probability(chosen, rejected))


def test_labels_go_against_the_utility_as_often_as_the_probabilities_say():
    best = best_reachable_accuracy(two_thousand())
    agree = statistics.mean(row["chosen_probability"] > 0.5 for row in two_thousand())
    assert abs(agree - best) < 4 * math.sqrt(best * (1 - best) / len(two_thousand()))


def test_a_perfect_judge_reaches_between_0_82_and_0_88():
    assert 0.82 <= best_reachable_accuracy(two_thousand()) <= 0.88


def test_chosen_answers_are_better_on_average_and_leave_room_above():
    for subset in ("helpful", "harmless"):
        rows = [row for row in two_thousand() if row["subset"] == subset]
        chosen = statistics.mean(utility(row["prompt"], row["chosen"]) for row in rows)
        rejected = statistics.mean(utility(row["prompt"], row["rejected"]) for row in rows)
        best = max(utility(row["prompt"], row["chosen"]) for row in rows)
        assert chosen > rejected + 1.0
        assert best > chosen + 1.5


def test_the_raw_corpus_is_worse_and_less_polite_than_the_chosen_answers():
    first = [text.partition("\n\nAssistant:") for text in generator.raw_corpus(1_000, seed=7)]
    answers = [(before + marker, after.partition("\n\nHuman:")[0]) for before, marker, after in first]
    corpus = [parts(prompt, answer) for prompt, answer in answers]
    chosen = [parts(row["prompt"], row["chosen"]) for row in two_thousand()]
    total = [statistics.mean(sum(one.values()) for one in side) for side in (corpus, chosen)]
    courtesy = [statistics.mean(one.get("courtesy", 0.0) for one in side) for side in (corpus, chosen)]
    assert total[0] < total[1] - 1.5
    assert courtesy[0] < courtesy[1] / 2


def test_most_texts_of_the_raw_corpus_go_on_after_an_answer():
    texts = generator.raw_corpus(1_000, seed=7)
    goes_on = [text.count("\n\nHuman:") > 2 for text in texts]  # a pair has at most two
    assert 0.6 < statistics.mean(goes_on) < 0.9


def test_prompts_and_answers_are_short_in_the_bundled_tokens():
    tokenizer = tokens.load_tokenizer(str(build.MODEL_DIR), None)
    prompt_tokens = [len(ids) for ids in tokenizer([row["prompt"] for row in two_thousand()])["input_ids"]]
    answers = [row[side] for row in two_thousand() for side in ("chosen", "rejected")]
    answer_tokens = [len(ids) + 1 for ids in tokenizer(answers)["input_ids"]]  # and EOS
    assert statistics.median(prompt_tokens) <= 30
    assert statistics.median(answer_tokens) <= 30
    assert statistics.mean(tokens <= 48 for tokens in answer_tokens) > 0.98


def test_more_pairs_than_can_be_kept_apart_are_refused():
    with pytest.raises(ValueError, match="at most 50000"):
        generator.pairs(50_001, seed=0)
