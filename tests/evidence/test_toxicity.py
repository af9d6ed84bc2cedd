import importlib.util

import numpy as np
import pytest

from gpt2_rlhf import pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import toxicity


def test_insults_are_toxic_and_polite_or_empty_answers_are_not():
    answers = ["You are an idiot and nobody likes you.", "Thanks, that is kind of you.", "", "Stop the server first."]
    found = toxicity.are_toxic(answers)
    assert found.tolist() == [True, False, False, False]
    assert (found == np.concatenate([toxicity.are_toxic([one]) for one in answers])).all()


def test_without_the_classifier_a_run_that_needs_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    chosen = compose.load(["evaluate.toxicity=true"]).settings
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "profanity_check" else find(name))
    with pytest.raises(UserError, match=r"^evaluate.toxicity: true, but .* run pip install 'gpt2-rlhf\[safety\]'"):
        pipeline.check(chosen)
    pipeline.check(compose.load(["evaluate.toxicity=true"]).settings, "ppo")
