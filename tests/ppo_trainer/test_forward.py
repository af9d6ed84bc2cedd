from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from trl.experimental.ppo import ppo_trainer as stock
from trl.experimental.ppo.ppo_trainer import PolicyAndValueWrapper
from trl.experimental.utils import get_reward
from trl.trainer.utils import selective_log_softmax

from gpt2_rlhf.ppo_trainer import forward
from gpt2_rlhf.ppo_trainer.forward import PolicyAndValue, Rows
from helpers import ppo_tiny as tiny

PROMPT = 9
TEMPERATURE = 0.7


def token_ids() -> Tensor:
    """Left-padded prompts of 9, 4 and 1 tokens; answers of 6 tokens, of 2 with EOS, of EOS alone."""
    torch.manual_seed(5)
    ids = torch.randint(200, 300, (3, PROMPT + 6))
    ids[1, : PROMPT - 4] = tiny.PAD_ID
    ids[2, : PROMPT - 1] = tiny.PAD_ID
    for row, answer_tokens in ((1, 2), (2, 1)):
        ids[row, PROMPT + answer_tokens - 1] = tiny.EOS_ID
        ids[row, PROMPT + answer_tokens :] = tiny.PAD_ID
    return ids


ROWS = Rows(token_ids(), PROMPT, tiny.PAD_ID)
IS_TOKEN = ROWS.is_token
HAS_VALUE = ROWS.has_value


def test_the_position_after_a_short_answer_has_a_value_too():
    # two answers: three tokens, and one token with room after it
    rows = Rows(torch.tensor([[8, 7, 7, 7], [8, 7, 0, 0]]), prompt_tokens=1, pad_token_id=0)
    assert rows.has_value.tolist() == [[True, True, True], [True, True, False]]


def stock_logprobs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """As TRL's train() computes them from the logits, but with probability 0 for the padding token, as in ours."""
    logits = logits[:, PROMPT - 1 : -1] / TEMPERATURE
    logits[..., tiny.PAD_ID] = -1e4
    entropies = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
    return selective_log_softmax(logits, ROWS.answers)[IS_TOKEN], entropies[IS_TOKEN]


def gradients(wrapper: torch.nn.Module, logprobs: Tensor, values: Tensor) -> list[Tensor | None]:
    (logprobs.exp().sum() + values.square().sum()).backward()
    return [parameter.grad for parameter in wrapper.parameters()]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's wrapper
def test_log_probabilities_entropies_values_and_gradients_equal_those_of_stock():
    wrapper = PolicyAndValueWrapper(tiny.policy(), tiny.scorer(2)).eval()  # TRL switches dropout off
    output, values = stock.forward(wrapper, token_ids(), tiny.PAD_ID)
    expected, expected_entropies = stock_logprobs(output.logits)
    expected_values = values[:, PROMPT - 1 : -1].squeeze(-1)[HAS_VALUE]
    expected_gradients = gradients(wrapper, expected, expected_values)

    our_wrapper = PolicyAndValue(tiny.policy(), tiny.scorer(2)).eval()
    logprobs, entropies, our_values = our_wrapper(ROWS, TEMPERATURE)
    assert logprobs.shape == entropies.shape == our_values.shape == IS_TOKEN.shape
    assert (logprobs[~IS_TOKEN] == 0).all()
    torch.testing.assert_close(logprobs[IS_TOKEN], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies[IS_TOKEN], expected_entropies, rtol=0, atol=1e-5)
    torch.testing.assert_close(our_values[HAS_VALUE], expected_values, rtol=0, atol=1e-5)
    ours = gradients(our_wrapper, logprobs[IS_TOKEN], our_values[HAS_VALUE])
    for our_gradient, gradient in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "base under the adapter"])
def test_reference_log_probabilities_equal_those_of_stock_also_under_an_adapter(adapter):
    policy = get_peft_model(
        tiny.policy(), LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type=TaskType.CAUSAL_LM)
    ).eval()

    @torch.no_grad()
    def both() -> tuple[Tensor, Tensor]:
        output: Any = stock.forward(policy, token_ids(), tiny.PAD_ID)
        ours, _ = forward.answer_logprobs(policy, ROWS, TEMPERATURE)
        return ours[IS_TOKEN], stock_logprobs(output.logits)[0]

    if adapter:
        ours, expected = both()
    else:
        with policy.disable_adapter():
            ours, expected = both()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_scores_and_values_equal_those_of_stock():
    model = tiny.scorer(1).eval()
    values, scores, _ = get_reward(model, token_ids(), tiny.PAD_ID, PROMPT)
    ours = forward.answer_values(model, ROWS)
    expected = values[:, PROMPT - 1 : -1].squeeze(-1)
    torch.testing.assert_close(forward.answer_scores(model, ROWS), scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[HAS_VALUE], expected[HAS_VALUE], rtol=0, atol=1e-5)


def test_the_model_computes_no_padding_and_logits_only_for_answers():
    model, counts = tiny.policy(), {}
    model.transformer.wte.register_forward_pre_hook(lambda _, args: counts.update(text=args[0].numel()))
    model.lm_head.register_forward_hook(lambda _, args, logits: counts.update(predicted=logits.shape[:-1].numel()))
    last: Any = model.transformer.h[-1]
    last.mlp.c_fc.register_forward_pre_hook(lambda _, args: counts.update(fed_forward_last=args[0].shape[:-1].numel()))
    forward.answer_logprobs(model, ROWS, 1.0)
    assert counts == {"text": 9 + 6 + 4 + 2 + 1 + 1, "fed_forward_last": 6 + 2 + 1, "predicted": 6 + 2 + 1}


def test_the_padding_token_has_probability_0_and_gets_no_gradient():
    model = tiny.always_says(tiny.policy(), tiny.PAD_ID)
    logprobs, _ = forward.answer_logprobs(model, ROWS, 1.0)
    assert logprobs[IS_TOKEN].exp().sum() > 0  # the rest of the vocabulary shares all of the probability
    logprobs.sum().backward()
    gradient = model.lm_head.weight.grad
    as_input = model.transformer.wte.weight is model.lm_head.weight
    assert as_input
    assert gradient is not None
    assert gradient[tiny.PAD_ID].abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probability_entropy_and_gradient_of_three_logits_by_hand(temperature):
    # tokens 0 and 1 with odds 3 : 1 at the temperature, token 2 never
    logits = torch.tensor([[temperature * torch.tensor(3.0).log().item(), 0.0, 9.0]], requires_grad=True)
    overwritten = logits * 1  # the function overwrites its input
    logprobs, entropies = forward._Logprobs.apply(overwritten, torch.tensor([0]), temperature, 2)
    assert logprobs.item() == pytest.approx(torch.tensor(0.75).log().item(), abs=1e-6)
    assert entropies.item() == pytest.approx(0.75 * 0.287682 + 0.25 * 1.386294, abs=1e-5)  # -p log p
    logprobs.backward(torch.tensor([2.0]))
    expected = torch.tensor([[2 * 0.25, -2 * 0.25, 0.0]]) / temperature
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-6)


def test_hooks_and_attention_are_restored_after_a_pass():
    model = tiny.policy()
    forward.answer_logprobs(model, ROWS, 1.0)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
