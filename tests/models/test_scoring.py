import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedModel

from gpt2_rlhf.models import scoring, tokens
from gpt2_rlhf.models.scoring import (
    answer_nll,
    by_length,
    distinct_2,
    kl_by_row,
    score,
    sequence_logprobs,
)
from helpers.tiny import fixed_next_token, tiny_policy, tiny_reward, tiny_tokenizer

ROWS = [
    {"prompt": f"\n\nHuman: {question}\n\nAssistant:", "chosen": chosen, "rejected": rejected}
    for question, chosen, rejected in (
        ("How do I bake bread?", " Mix flour and water, then bake it.", " No."),
        ("Hi", " Hello there", " go away please, I am busy"),
        ("Tell me about the sea and the ships on it.", " It is salty.", " It is salty."),
        ("chess?", " Play often.", " Look at the games you lost, all of them, each day."),
    )
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
    return [row[side] for row in tokens.encode_reward(tokenizer, ROWS) for side in ("chosen_ids", "rejected_ids")]


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


def test_a_pad_token_other_than_the_one_of_the_model_is_refused(reward, tokenizer):
    with pytest.raises(ValueError, match=r"pad_token_id: .* expected .*, the model's own"):
        score(reward, tokenizer.eos_token_id, [[1, 2]], 1)


def test_by_length_batches_every_row_once_with_rows_of_similar_length():
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


def test_logprobs_do_not_change_when_memory_allows_one_row_at_a_time(policy, tokenizer, monkeypatch):
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    answers = [tokenizer(row["chosen"])["input_ids"] for row in ROWS]
    together = sequence_logprobs(policy, prompts, answers, 1.0, 4)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 1)
    for one, other in zip(sequence_logprobs(policy, prompts, answers, 1.0, 4), together, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_an_empty_answer_has_no_logprobs_and_an_empty_prompt_is_refused(policy):
    found = sequence_logprobs(policy, [[5, 6], [5]], [[], [7]], 1.0, 2)
    assert [row.size for row in found] == [0, 1]
    with pytest.raises(ValueError, match="an empty prompt"):
        sequence_logprobs(policy, [[]], [[7]], 1.0, 1)


def prompts_and_answers(tokenizer: GPT2Tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    prompts, answers = ([tokenizer(row[part])["input_ids"] for row in ROWS] for part in ("prompt", "chosen"))
    return prompts, answers


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
    # after every text the policy gives tokens 7 and 8 with 0.5 each, the reference with 0.8 and 0.2
    policy, reference = (fixed_next_token(tokenizer, {7: seven, 8: 1 - seven}) for seven in (0.5, 0.8))
    kl = kl_by_row(policy, reference, [[5], [5]], [[7], [8]], 1.0, 2)  # both answers are equally likely
    expected = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    assert kl.exact == pytest.approx([expected, expected], rel=1e-5)
    assert kl.k1 == pytest.approx([np.log(0.5 / 0.8), np.log(0.5 / 0.2)], rel=1e-5)
    assert kl.k1.mean() == pytest.approx(expected, rel=1e-5)
    assert kl.k3.mean() == pytest.approx(expected, rel=1e-5)


def test_kl_does_not_change_when_memory_allows_one_row_at_a_time(policy, tokenizer, monkeypatch):
    reference, texts = tiny_policy(tokenizer, seed=1), prompts_and_answers(tokenizer)
    together = kl_by_row(policy, reference, *texts, 1.0, 4)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 1)
    assert kl_by_row(policy, reference, *texts, 1.0, 4).exact == pytest.approx(together.exact, rel=1e-4)


# peft reads an attribute that transformers has deprecated (peft_model.py)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_without_a_reference_the_kl_is_to_the_policy_without_its_adapter(tokenizer):
    base, texts = tiny_policy(tokenizer), prompts_and_answers(tokenizer)
    lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted: PreTrainedModel = get_peft_model(tiny_policy(tokenizer), lora)  # type: ignore[assignment]  # acts as one
    kl = kl_by_row(adapted, None, *texts, 1.0, 3)
    assert min(kl.exact) > 0.01
    expected = kl_by_row(adapted, base, *texts, 1.0, 3)
    assert kl.exact == pytest.approx(expected.exact, rel=1e-5)


def test_an_unchanged_policy_has_zero_kl(policy, tokenizer):
    kl = kl_by_row(policy, policy, *prompts_and_answers(tokenizer), 0.7, 3)
    assert np.array([kl.exact, kl.k1, kl.k3]).tolist() == [[0.0] * len(ROWS)] * 3


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 1.0), ([7], 1.0), ([7, 8], 1.0), ([7, 7, 7, 7], 1 / 3), ([1, 2, 1, 2, 1], 2 / 4), ([1, 2, 3], 1.0)],
)
def test_distinct_2_is_distinct_bigrams_over_bigrams(ids: list[int], expected: float):
    assert distinct_2(ids) == pytest.approx(expected)


def test_nll_is_the_loss_that_the_model_returns_times_its_tokens(policy, tokenizer):
    encoded = tokens.encode_sft(tokenizer, ROWS)
    nll_sums, counts = answer_nll(policy, encoded, 3)
    for row, nll, count in zip(encoded, nll_sums, counts, strict=True):
        trained = sum(label != -100 for label in row["labels"])
        with torch.no_grad():
            loss = policy(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
        assert count == trained
        assert nll == pytest.approx(loss * trained, rel=1e-4)


def test_scoring_is_without_dropout_and_restores_training_mode(tokenizer, pad):
    model = tiny_reward(tokenizer)
    without_dropout = score(model, pad, sequences(tokenizer), 3)
    model.train()
    assert score(model, pad, sequences(tokenizer), 3) == pytest.approx(without_dropout, abs=1e-6)
    assert model.training
