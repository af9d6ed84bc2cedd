import gc
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor
from transformers import TrainerCallback
from transformers.activations import NewGELUActivation
from trl.experimental.ppo import ppo_trainer as stock
from trl.experimental.ppo.ppo_trainer import PolicyAndValueWrapper
from trl.experimental.utils import get_reward
from trl.trainer.utils import selective_log_softmax

import ppo_tiny as tiny
from gpt2_rlhf import ppo_rollout, ppo_speed
from gpt2_rlhf.ppo_loader import PromptBatches

PROMPT = 9


def rows() -> Tensor:
    """Left-padded prompts of 9, 4 and 1 tokens; answers of 6 tokens, of 2 with EOS, of EOS alone."""
    torch.manual_seed(5)
    ids = torch.randint(200, 300, (3, PROMPT + 6))
    ids[1, : PROMPT - 4] = tiny.PAD_ID
    ids[2, : PROMPT - 1] = tiny.PAD_ID
    for row, answer_tokens in ((1, 2), (2, 1)):
        ids[row, PROMPT + answer_tokens - 1] = tiny.EOS_ID
        ids[row, PROMPT + answer_tokens :] = tiny.PAD_ID
    return ids


IS_TOKEN = rows()[:, PROMPT:] != tiny.PAD_ID
# TRL's value loss goes one position beyond the answer
IS_VALUED = torch.cat([torch.ones(3, 1, dtype=torch.bool), IS_TOKEN[:, :-1]], 1)


def logprobs_and_values(build: Any, forward: Any) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """What train() takes from its forward pass, and the gradients of a loss on it."""
    wrapper = build(tiny.policy(), tiny.scorer(2)).eval()  # TRL takes the dropout out
    output, values = forward(wrapper, rows(), tiny.PAD_ID)
    logits = output.logits[:, PROMPT - 1 : -1]
    logits /= 0.7
    logprobs = selective_log_softmax(logits, rows()[:, PROMPT:])[IS_TOKEN]
    values = values[:, PROMPT - 1 : -1].squeeze(-1)[IS_VALUED]
    (logprobs.exp().sum() + values.square().sum()).backward()
    return logprobs, values, [parameter.grad for parameter in wrapper.parameters()]


def noted_prompts(run: Any) -> Any:
    """`run` within fast(), which has seen a rollout with prompts of this test's length."""

    def sample(policy: Any, prompts: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        return prompts, prompts

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stock.__dict__, "batch_generation", sample)
        with ppo_speed.fast():
            stock.batch_generation(tiny.policy(), rows()[:, :PROMPT])  # type: ignore[call-arg]
            return run()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # TRL's wrapper
def test_log_probabilities_values_and_gradients_are_those_of_stock():
    expected = logprobs_and_values(PolicyAndValueWrapper, stock.forward)
    ours = noted_prompts(lambda: logprobs_and_values(stock.PolicyAndValueWrapper, stock.forward))
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], expected[1], rtol=0, atol=1e-5)
    for our_gradient, gradient in zip(ours[2], expected[2], strict=True):
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "base under the adapter"])
def test_the_reference_is_that_of_stock_also_under_an_adapter(adapter):
    policy = get_peft_model(
        tiny.policy(), LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type=TaskType.CAUSAL_LM)
    ).eval()

    @torch.no_grad()
    def logits() -> Tensor:
        output: Any = stock.forward(policy, rows(), tiny.PAD_ID)
        return output.logits[:, PROMPT - 1 : -1][IS_TOKEN]

    def logits_as_wanted() -> Tensor:
        if adapter:
            return logits()
        with policy.disable_adapter():
            return logits()

    torch.testing.assert_close(noted_prompts(logits_as_wanted), logits_as_wanted(), rtol=0, atol=1e-5)


def test_scores_values_and_positions_are_those_of_stock():
    model = tiny.scorer(1).eval()
    values, scores, last = get_reward(model, rows(), tiny.PAD_ID, PROMPT)
    our_values, our_scores, our_last = ppo_speed.get_reward(model, rows(), tiny.PAD_ID, PROMPT)
    answers = (slice(None), slice(PROMPT - 1, -1))
    torch.testing.assert_close(our_scores, scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(our_values[answers][IS_VALUED], values[answers][IS_VALUED], rtol=0, atol=1e-5)
    assert our_last.tolist() == last.tolist() == [PROMPT + 5, PROMPT + 1, PROMPT]


def test_padding_adds_nothing_to_the_entropy():
    model = tiny.policy().eval()
    states = ppo_speed.answer_states(model, rows(), PROMPT, tiny.PAD_ID)
    probabilities = ppo_speed.answer_logits(model, states, IS_TOKEN).softmax(-1)
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum(-1)
    assert entropy[~IS_TOKEN].abs().max() == 0
    assert entropy[IS_TOKEN].min() > 1


def test_only_text_goes_through_the_model_and_only_answers_to_the_vocabulary():
    model, seen = tiny.policy(), {}
    model.transformer.register_forward_pre_hook(
        lambda _, args, inputs: seen.update(text=inputs["input_ids"].numel()), with_kwargs=True
    )
    model.lm_head.register_forward_pre_hook(lambda _, args: seen.update(predicted=args[0].shape[:-1].numel()))
    ppo_speed.answer_logits(model, ppo_speed.answer_states(model, rows(), PROMPT, tiny.PAD_ID), IS_TOKEN)
    assert seen == {"text": 9 + 6 + 4 + 2 + 1 + 1, "predicted": 6 + 2 + 1}


def test_the_first_update_is_that_of_stock(tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # TRL collects garbage twice an update

    class Seed(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.manual_seed(4)
            np.random.seed(4)

    def first_update(build: Any) -> dict[str, float]:
        # one step of each model: later ones would differ by more, since ours clips the gradient
        args = tiny.arguments(tmp_path, total_episodes=4, num_ppo_epochs=1, temperature=0.7, save_strategy="no")
        trainer = build(args, callbacks=[Seed()])
        trainer.local_seed = 4
        trainer.dataloader = PromptBatches(trainer.train_dataset, trainer.data_collator, 4, 0, 0, 1)
        # ours never samples the padding token; without this, stock gives it 1/400 in these random models
        with ppo_rollout.token_banned(tiny.PAD_ID, trainer.policy_model, trainer.ref_model):
            trainer.train()
        return trainer.state.log_history[0]

    expected, ours = first_update(tiny.stock), first_update(tiny.ours)
    names = [name for name in expected if name.startswith(("objective/", "policy/", "loss/", "val/"))]
    assert len(names) >= 13
    close = pytest.approx({name: expected[name] for name in names}, rel=1e-5, abs=1e-5, nan_ok=True)
    assert {name: ours[name] for name in names} == close


def test_nothing_is_left_behind():
    model, functions = tiny.policy(), dict(vars(stock))
    with ppo_speed.fast():
        ppo_speed.answer_states(model, rows(), PROMPT, tiny.PAD_ID)
    assert dict(vars(stock)) == functions
    assert model.config._attn_implementation == "sdpa"


def test_fused_activations_compute_the_same():
    model = tiny.policy().eval()
    before = model(rows()).logits
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    rows_apart.use_fused_activations(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    torch.testing.assert_close(model(rows()).logits, before, rtol=0, atol=1e-5)
