import pytest
import torch
from transformers import GenerationConfig
from trl.experimental.ppo import ppo_trainer as stock
from trl.trainer.utils import selective_log_softmax

import ppo_tiny as tiny
from gpt2_rlhf import ppo_rollout


def prompts_tensor(rows: int) -> torch.Tensor:
    return tiny.padding_tokenizer().pad({"input_ids": tiny.prompts(rows)["input_ids"]}, return_tensors="pt")[
        "input_ids"
    ]


def settings() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tiny.RESPONSE, temperature=0.7, top_k=0, top_p=1.0, do_sample=True)


def often_stopping_policy():
    """Stops with a probability of about 0.3 at each token."""
    model = tiny.policy()
    eos_like = model.transformer.wte.weight[tiny.EOS_ID]
    with torch.no_grad():
        hidden = model.transformer(prompts_tensor(4)).last_hidden_state.mean((0, 1))
        eos_like += hidden * (5 / hidden.norm() ** 2)
    return model


@pytest.mark.parametrize("rows_per_call", [2, 4, 5])
def test_answers_and_log_probabilities_are_those_of_stock(rows_per_call):
    policy, prompts = often_stopping_policy(), prompts_tensor(5)
    torch.manual_seed(0)
    stock_ids, logits = stock.batch_generation(policy, prompts, rows_per_call, tiny.PAD_ID, settings())
    torch.manual_seed(0)
    ids, logprobs = ppo_rollout.sample(policy, prompts, rows_per_call, tiny.PAD_ID, settings())

    answers = ids[:, prompts.shape[1] :]
    stock_answers = stock_ids[:, prompts.shape[1] :]
    kept = torch.ones_like(answers, dtype=torch.bool)
    kept[:, 1:] = (answers[:, :-1] == tiny.EOS_ID).cumsum(1) == 0
    assert not kept.all()  # else the test would say nothing about answers that stop
    assert ids.shape == stock_ids.shape
    assert torch.equal(answers[kept], stock_answers[kept])
    torch.testing.assert_close(logprobs[kept], selective_log_softmax(logits, stock_answers)[kept])


def test_after_the_eos_there_is_only_padding():
    policy = tiny.always_says(tiny.policy(), tiny.EOS_ID)
    ids, _ = ppo_rollout.sample(policy, prompts_tensor(4), 4, tiny.PAD_ID, settings())
    assert ids.shape[1] == prompts_tensor(4).shape[1] + 1  # all stopped at once
    ids, _ = ppo_rollout.sample(often_stopping_policy(), prompts_tensor(12), 12, tiny.PAD_ID, settings())
    answers = ids[:, prompts_tensor(12).shape[1] :]
    ended = (answers == tiny.EOS_ID).cumsum(1) - (answers == tiny.EOS_ID).int() > 0
    assert ended.any()
    assert set(answers[ended].tolist()) == {tiny.PAD_ID}


def test_a_banned_token_has_probability_0_and_no_gradient_and_the_rest_add_to_1():
    policy, ids = tiny.always_says(tiny.policy(), tiny.PAD_ID), torch.tensor([[7, 8, 9]])
    assert policy(ids).logits.softmax(-1)[..., tiny.PAD_ID].min() > 0.9
    with ppo_rollout.token_banned(tiny.PAD_ID, policy):
        logits = policy(ids).logits
        probabilities = logits.softmax(-1)
        assert (probabilities[..., tiny.PAD_ID] == 0).all()
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(ids.shape))
        logits.log_softmax(-1)[..., 5].sum().backward()
    gradient = policy.lm_head.weight.grad
    assert gradient is not None
    assert (gradient[tiny.PAD_ID] == 0).all()
    assert gradient[5].abs().sum() > 0
    assert policy(ids).logits.softmax(-1)[..., tiny.PAD_ID].min() > 0.9
