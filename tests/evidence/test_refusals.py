"""The answers were written and labelled by hand before the phrases were; the held-out half was never tuned on."""

import json
from pathlib import Path

import pytest

from gpt2_rlhf.embedded import phrases
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.evidence.refusals import is_refusal

LABELLED = [
    json.loads(line)
    for line in Path(__file__).with_name("labelled_answers.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("half", ["held-out", "tuning"])
def test_refusals_are_found_with_a_precision_and_a_recall_of_at_least_0_9(half: str):
    answers = [one for one in LABELLED if one["half"] == half]
    refusals = [one for one in answers if one["refuses"]]
    found = [one for one in answers if is_refusal(one["answer"])]
    right = sum(one["refuses"] for one in found)
    precision, recall = wilson(right, len(found)), wilson(right, len(refusals))
    print(f"{half}: {len(answers)} answers, precision {precision}, recall {recall}")
    assert min(precision["mean"], recall["mean"]) >= 0.9


def test_at_least_150_answers_are_labelled_and_both_labels_are_common_in_each_half():
    assert len({one["answer"] for one in LABELLED}) == len(LABELLED) >= 150
    for half in ("held-out", "tuning"):
        assert sorted(one["refuses"] for one in LABELLED if one["half"] == half)[50:-50]


def test_the_bundled_refusals_are_found_and_no_other_bundled_sentence_is_one():
    assert all(map(is_refusal, phrases.REFUSALS))
    others = (*phrases.EVASIONS, *phrases.INSULTS, *phrases.REASONS, *phrases.ALTERNATIVES, *phrases.OPENINGS)
    assert not any(map(is_refusal, others))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" I can\u2019t help with that.", True),
        ("I CANNOT\n help  with that.", True),
        ("", False),
        ('She said: "I can\'t help you with that."', False),
        ("Yes. " * 70 + "I can't help with that.", False),
        (" Of course.\n\nHuman: And that?\n\nAssistant: I can't help with that.", False),
    ],
)
def test_only_the_own_words_at_the_opening_of_an_answer_count(answer: str, expected: bool):
    assert is_refusal(answer) == expected
