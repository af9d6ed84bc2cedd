import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer

from gpt2_rlhf.evidence import model_reports
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.evidence.model_reports import heldout_loss, reward_report
from gpt2_rlhf.models import scoring, tokens
from gpt2_rlhf.models.scoring import (
    answer_nll,
    by_length,
    distinct_2,
    kl_by_row,
    score,
    sequence_logprobs,
)
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


@pytest.fixture(scope="module")
def policy(tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    return tiny_policy(tokenizer)


@pytest.fixture(scope="module")
def reward(tokenizer: GPT2Tokenizer) -> GPT2ForSequenceClassification:
    return tiny_reward(tokenizer)


@pytest.fixture(scope="module")
def pad(tokenizer: GPT2Tokenizer) -> int:
    return tokens.pad_id(tokens.padding_copy(tokenizer, "right"))


def sequences(tokenizer: GPT2Tokenizer) -> list[list[int]]:
    return [tokens.encode_reward(tokenizer, row)[side] for row in ROWS for side in ("chosen_ids", "rejected_ids")]


def test_batched_scores_equal_scores_one_by_one(reward, tokenizer, pad):
    rows = sequences(tokenizer)
    with torch.no_grad():
        alone = [reward(input_ids=torch.tensor([ids])).logits.item() for ids in rows]
    assert np.ptp(alone) > 0.1
    for batch_size in (1, 3, 8):
        assert score(reward, pad, rows, batch_size) == pytest.approx(alone, abs=1e-5)


def test_score_is_read_at_eos(reward, tokenizer, pad):
    ids = sequences(tokenizer)[0]
    with torch.no_grad():
        hidden = reward.transformer(input_ids=torch.tensor([ids])).last_hidden_state
        at_eos = reward.score(hidden[0, -1]).item()
    assert ids[-1] == tokenizer.eos_token_id
    assert score(reward, pad, [ids, ids * 2], 2)[0] == pytest.approx(at_eos, abs=1e-5)


def test_padding_the_model_does_not_know_is_refused(reward, tokenizer):
    with pytest.raises(ValueError, match="but the model looks for"):
        score(reward, tokenizer.eos_token_id, [[1, 2]], 1)


def test_by_length_gives_every_row_once_and_like_to_like():
    batches = by_length([5, 1, 9, 5, 2], 2)
    assert batches == [[2, 0], [3, 4], [1]]


def test_logprobs_are_log_softmax_of_the_full_forward(policy, tokenizer):
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    answers = [tokenizer(row["chosen"])["input_ids"] for row in ROWS]
    for temperature in (1.0, 0.7):
        for batch_size in (1, 3):
            found = sequence_logprobs(policy, prompts, answers, temperature, batch_size)
            for prompt, answer, logprobs in zip(prompts, answers, found, strict=True):
                with torch.no_grad():
                    logits = policy(input_ids=torch.tensor([prompt + answer])).logits[0] / temperature
                expected = [
                    logits.log_softmax(-1)[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer)
                ]
                assert logprobs == pytest.approx(expected, abs=1e-4)


def test_logprobs_hold_when_memory_allows_one_row_at_a_time(policy, tokenizer, monkeypatch):
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    answers = [tokenizer(row["chosen"])["input_ids"] for row in ROWS]
    together = sequence_logprobs(policy, prompts, answers, 1.0, 4)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 1)
    for one, other in zip(sequence_logprobs(policy, prompts, answers, 1.0, 4), together, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_an_empty_answer_has_no_logprobs_and_an_empty_prompt_is_refused(policy):
    found = sequence_logprobs(policy, [[5, 6], [5]], [[], [7]], 1.0, 2)
    assert [row.size for row in found] == [0, 1]
    with pytest.raises(ValueError, match="an empty prompt"):
        sequence_logprobs(policy, [[]], [[7]], 1.0, 1)


def prompts_and_answers(tokenizer: GPT2Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    return tuple([tokenizer(row[part])["input_ids"] for row in ROWS] for part in ("prompt", "chosen"))  # type: ignore[return-value]


def test_exact_kl_is_the_sum_over_the_vocabulary_at_each_token_of_the_answer(policy, tokenizer):
    reference, (prompts, answers) = tiny_policy(tokenizer, seed=1), prompts_and_answers(tokenizer)
    for temperature, batch_size in ((1.0, 1), (0.7, 3)):
        kl = kl_by_row(policy, reference, prompts, answers, temperature, batch_size)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            with torch.no_grad():
                p, q = (
                    (model(input_ids=torch.tensor([prompt + answer])).logits[0] / temperature).double().log_softmax(-1)
                    for model in (policy, reference)
                )
            at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
            assert kl.exact[row] == pytest.approx((p[at].exp() * (p[at] - q[at])).sum().item(), rel=1e-4)
            places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            d = [(q[place, token] - p[place, token]).item() for place, token in zip(places, answer, strict=True)]
            assert kl.k1[row] == pytest.approx(-sum(d), rel=1e-4, abs=1e-4)
            assert kl.k3[row] == pytest.approx(sum(np.exp(x) - 1 - x for x in d), rel=1e-4)


def test_sampled_estimates_of_kl_agree_with_the_exact_one_on_average(tokenizer):
    # a policy that gives token 7 with 0.5 and 8 with 0.5, a reference with 0.8 and 0.2, whatever came before
    models = []
    for seven in (0.5, 0.8):
        model = tiny_policy(tokenizer)
        logits = torch.full((len(tokenizer),), -1e4)
        logits[7], logits[8] = np.log(seven), np.log(1 - seven)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(logits)
        models.append(model)
    kl = kl_by_row(models[0], models[1], [[5], [5]], [[7], [8]], 1.0, 2)  # both answers are equally likely
    expected = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    assert kl.exact == pytest.approx([expected, expected], rel=1e-5)
    assert kl.k1 == pytest.approx([np.log(0.5 / 0.8), np.log(0.5 / 0.2)], rel=1e-5)
    assert kl.k1.mean() == pytest.approx(expected, rel=1e-5)
    assert kl.k3.mean() == pytest.approx(expected, rel=1e-5)


def test_kl_holds_when_memory_allows_one_row_at_a_time(policy, tokenizer, monkeypatch):
    reference, texts = tiny_policy(tokenizer, seed=1), prompts_and_answers(tokenizer)
    together = kl_by_row(policy, reference, *texts, 1.0, 4)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 1)
    assert kl_by_row(policy, reference, *texts, 1.0, 4).exact == pytest.approx(together.exact, rel=1e-4)


# peft reads an attribute that transformers has deprecated (peft_model.py)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_without_a_reference_the_adapter_is_switched_off(tokenizer):
    base, texts = tiny_policy(tokenizer), prompts_and_answers(tokenizer)
    lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_policy(tokenizer), lora)
    kl = kl_by_row(adapted, None, *texts, 1.0, 3)  # type: ignore[arg-type]
    assert min(kl.exact) > 0.01
    expected = kl_by_row(adapted, base, *texts, 1.0, 3)  # type: ignore[arg-type]
    assert kl.exact == pytest.approx(expected.exact, rel=1e-5)


def test_an_answer_of_an_unchanged_policy_has_no_kl(policy, tokenizer):
    kl = kl_by_row(policy, policy, *prompts_and_answers(tokenizer), 0.7, 3)
    assert np.array([kl.exact, kl.k1, kl.k3]).tolist() == [[0.0] * len(ROWS)] * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 1.0), ([7], 1.0), ([7, 8], 1.0), ([7, 7, 7, 7], 1 / 3), ([1, 2, 1, 2, 1], 2 / 4), ([1, 2, 3], 1.0)],
)
def test_distinct_2_is_distinct_bigrams_over_bigrams(ids: list[int], expected: float):
    assert distinct_2(ids) == pytest.approx(expected)


def test_nll_is_the_models_own_loss_times_its_tokens(policy, tokenizer):
    encoded = [tokens.encode_sft(tokenizer, row) for row in ROWS]
    nll_sums, counts = answer_nll(policy, encoded, 3)
    for row, nll, count in zip(encoded, nll_sums, counts, strict=True):
        trained = sum(label != -100 for label in row["labels"])
        with torch.no_grad():
            loss = policy(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        assert count == trained
        assert nll == pytest.approx(loss * trained, rel=1e-4)


def test_heldout_loss_is_per_token_and_counts_rows(policy, tokenizer):
    nll_sums, counts = answer_nll(policy, [tokens.encode_sft(tokenizer, row) for row in ROWS], 4)
    estimate = heldout_loss(policy, tokenizer, ROWS, 4)
    assert estimate.mean == pytest.approx(nll_sums.sum() / counts.sum())
    assert estimate.low <= estimate.mean <= estimate.high
    assert estimate.n == len(ROWS)


def test_uniform_model_loses_log_vocabulary_per_token(tokenizer):
    model = tiny_policy(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert heldout_loss(model, tokenizer, ROWS, 2).mean == pytest.approx(np.log(len(tokenizer)), abs=1e-5)


def test_training_mode_survives_scoring_without_dropout(tokenizer, pad):
    model = tiny_reward(tokenizer)
    quiet = score(model, pad, sequences(tokenizer), 3)
    model.train()
    assert score(model, pad, sequences(tokenizer), 3) == pytest.approx(quiet, abs=1e-6)
    assert model.training


def report_for(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch, rows: list[dict], scores: list[float]
) -> dict:
    """The report when the reward model gives these scores: chosen answers first, then rejected."""
    monkeypatch.setattr(model_reports, "score", lambda *_: np.array(scores))
    return reward_report(tiny_reward(tokenizer), tokenizer, rows, 4, seed=0)


def test_report_counts_ties_one_half_beside_its_baselines(tokenizer, monkeypatch):
    # margins 1.0, -0.5, 0, 2.0: two won, one tied
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    expected = wilson(2.5, 4)
    assert report["accuracy"] == {"mean": 0.625, "low": expected.low, "high": expected.high, "n": 4}
    assert report["baselines"]["chance"] == 0.5
    # chosen is longer in the first, as long in the third
    assert report["baselines"]["longer_answer_wins"]["mean"] == pytest.approx(1.5 / 4)
    assert report["margin"]["mean"] == pytest.approx(0.625)
    assert report["score_mean"] == pytest.approx(10.5 / 8)
    squares = [2.0**2, 0.5**2, 1.0, 3.0**2, 1.0, 1.0, 1.0, 1.0]
    assert report["score_std"] == pytest.approx((sum(squares) / 8 - (10.5 / 8) ** 2) ** 0.5)
    assert report["pairs"] == 4


def test_report_splits_accuracy_by_subset(tokenizer, monkeypatch):
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    by_subset = report["by_subset"]
    assert {name: (s["accuracy"]["mean"], s["accuracy"]["n"]) for name, s in by_subset.items()} == {
        "harmless": (0.5, 2),
        "helpful": (0.75, 2),
    }
    assert by_subset["harmless"]["longer_answer_wins"]["mean"] == 0.0
    assert by_subset["helpful"]["longer_answer_wins"]["mean"] == 0.75


def test_report_tells_confidence_and_length_bias_of_the_same_pairs(tokenizer, monkeypatch):
    report = report_for(tokenizer, monkeypatch, ROWS, [2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 1.0, 1.0])
    # chosen is longer in the first, which is right, shorter in the second and fourth, of which one is
    assert report["length_bias"]["accuracy_chosen_longer"]["mean"] == 1.0
    assert (report["length_bias"]["accuracy_chosen_shorter"]["mean"], report["length_bias"]["correlation"]["n"]) == (
        0.5,
        4,
    )
    # claims of 0.5 (no margin), 0.62 (of -0.5), 0.73 (of 1) and 0.88 (of 2)
    assert [one["observed"]["mean"] for one in report["calibration"]["bins"]] == [0.5, 0.0, 1.0, 1.0]


def test_best_reachable_is_the_mean_of_the_likelier_side(tokenizer, monkeypatch):
    rows = [pair("a", " b", " c", probability=p) for p in (0.9, 0.2)]
    assert report_for(tokenizer, monkeypatch, rows, [1, 1, 0, 0])["baselines"]["best_reachable"] == pytest.approx(0.85)


def test_best_reachable_is_unknown_unless_every_pair_has_its_probability(tokenizer, monkeypatch):
    rows = [pair("a", " b", " c", probability=p) for p in (0.9, None)]
    assert report_for(tokenizer, monkeypatch, rows, [1, 1, 0, 0])["baselines"]["best_reachable"] is None


def test_report_scores_chosen_against_rejected_of_the_same_row(reward, tokenizer):
    report = reward_report(reward, tokenizer, ROWS, 3, seed=0)
    with torch.no_grad():
        alone = [reward(input_ids=torch.tensor([ids])).logits.item() for ids in sequences(tokenizer)]
    margins = np.array(alone[0::2]) - np.array(alone[1::2])
    assert report["margin"]["mean"] == pytest.approx(margins.mean(), abs=1e-5)
