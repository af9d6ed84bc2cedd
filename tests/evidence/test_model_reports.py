import numpy as np
import pytest
import torch
from transformers import GPT2Tokenizer

from gpt2_rlhf.evidence import model_reports
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.evidence.model_reports import heldout_loss, reward_report
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.scoring import answer_nll
from helpers.tiny import tiny_policy, tiny_reward, tiny_tokenizer


def pair(question: str, chosen: str, rejected: str, subset: str = "helpful", probability: float | None = None) -> dict:
    return {
        "prompt": f"\n\nHuman: {question}\n\nAssistant:",
        "chosen": chosen,
        "rejected": rejected,
        "subset": subset,
        "row": "train.jsonl:1",
        "chosen_probability": probability,
    }


ROWS = [
    pair("How do I bake bread?", " Mix flour and water, then bake it.", " No."),
    pair("Hi", " Hello there", " go away please, I am busy", "harmless"),
    pair("Tell me about the sea and the ships on it.", " It is salty.", " It is salty."),
    pair("chess?", " Play often.", " Look at the games you lost, all of them, each day.", "harmless"),
]


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return tiny_tokenizer()


def test_heldout_loss_is_a_mean_per_token_with_n_rows(tokenizer):
    policy = tiny_policy(tokenizer)
    nll_sums, counts = answer_nll(policy, tokens.encode_sft(tokenizer, ROWS), 4)
    estimate = heldout_loss(policy, tokenizer, ROWS, 4)
    assert estimate["mean"] == pytest.approx(nll_sums.sum() / counts.sum())
    assert estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert estimate["n"] == len(ROWS)


def test_the_heldout_loss_of_a_uniform_model_is_the_log_of_its_vocabulary(tokenizer):
    model = tiny_policy(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert heldout_loss(model, tokenizer, ROWS, 2)["mean"] == pytest.approx(np.log(len(tokenizer)), abs=1e-5)


def report_for(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch, rows: list[dict], scores: list[float]
) -> dict:
    """Return the report for these scores: of the chosen answers, then of the rejected ones."""
    monkeypatch.setattr(model_reports, "score", lambda *_: np.array(scores))
    return reward_report(tiny_reward(tokenizer), tokenizer, rows, 4, seed=0)


def test_accuracy_counts_a_tie_as_one_half_and_stands_beside_its_baselines(tokenizer, monkeypatch):
    # margins 1.0, -0.5, 0, 2.0: two won, one tied
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    expected = wilson(2.5, 4)
    assert report["accuracy"] == {"mean": 0.625, "low": expected["low"], "high": expected["high"], "n": 4}
    assert report["baselines"]["chance"] == 0.5
    # chosen is longer in the first, as long in the third
    assert report["baselines"]["longer_answer_wins"]["mean"] == pytest.approx(1.5 / 4)
    assert report["margin"]["mean"] == pytest.approx(0.625)
    assert report["score_mean"] == pytest.approx(10.5 / 8)
    squares = [2.0**2, 0.5**2, 1.0, 3.0**2, 1.0, 1.0, 1.0, 1.0]
    assert report["score_std"] == pytest.approx((sum(squares) / 8 - (10.5 / 8) ** 2) ** 0.5)
    assert report["pairs"] == 4


def test_accuracy_is_also_given_by_subset(tokenizer, monkeypatch):
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    by_subset = report["by_subset"]
    assert {name: (s["accuracy"]["mean"], s["accuracy"]["n"]) for name, s in by_subset.items()} == {
        "harmless": (0.5, 2),
        "helpful": (0.75, 2),
    }
    assert by_subset["harmless"]["longer_answer_wins"]["mean"] == 0.0
    assert by_subset["helpful"]["longer_answer_wins"]["mean"] == 0.75


def test_calibration_and_length_bias_are_of_the_same_pairs(tokenizer, monkeypatch):
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    # chosen is longer in the first, which is right, shorter in the second and fourth, of which one is
    assert report["length_bias"]["accuracy_chosen_longer"]["mean"] == 1.0
    assert (report["length_bias"]["accuracy_chosen_shorter"]["mean"], report["length_bias"]["correlation"]["n"]) == (
        0.5,
        4,
    )
    # claims of 0.5 (no margin), 0.62 (of -0.5), 0.73 (of 1) and 0.88 (of 2)
    assert [one["observed"]["mean"] for one in report["calibration"]["bins"]] == [0.5, 0.0, 1.0, 1.0]


def test_best_reachable_is_the_mean_probability_of_the_likelier_answer(tokenizer, monkeypatch):
    rows = [pair("a", " b", " c", probability=p) for p in (0.9, 0.2)]
    assert report_for(tokenizer, monkeypatch, rows, [1, 1, 0, 0])["baselines"]["best_reachable"] == pytest.approx(0.85)


def test_best_reachable_is_null_unless_every_pair_has_a_probability(tokenizer, monkeypatch):
    rows = [pair("a", " b", " c", probability=p) for p in (0.9, None)]
    assert report_for(tokenizer, monkeypatch, rows, [1, 1, 0, 0])["baselines"]["best_reachable"] is None


def test_margins_are_between_the_two_answers_of_the_same_row(tokenizer):
    reward, encoded = tiny_reward(tokenizer), tokens.encode_reward(tokenizer, ROWS)
    report = reward_report(reward, tokenizer, ROWS, 3, seed=0)
    with torch.no_grad():
        chosen, rejected = (
            [reward(input_ids=torch.tensor([row[side]])).logits.item() for row in encoded]
            for side in ("chosen_ids", "rejected_ids")
        )
    assert report["margin"]["mean"] == pytest.approx(np.mean(np.subtract(chosen, rejected)), abs=1e-5)
