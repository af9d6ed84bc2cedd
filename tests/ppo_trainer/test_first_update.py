from pathlib import Path
from typing import Any

import pytest
import torch
from trl.experimental.ppo import ppo_trainer as stock_module

from gpt2_rlhf.ppo_trainer import forward, rollouts
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


def first_update_of_both(tmp_path: Path, monkeypatch: Any, policy: Any, **changes: Any) -> tuple[Any, Any]:
    """Run the first update of a stock trainer, and ours on the answers that the stock one sampled.

    Each mini-batch is one microbatch, where stock's mean of means is the mean over tokens too. Stock's answers are
    padded to `response_length`; its own are as wide as the longest, which then has no value after EOS.
    """
    args = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 4, "total_episodes": 4, "optim": "sgd"}
    args |= {"max_grad_norm": 0, "temperature": 0.7, "learning_rate": 0.1, **changes}
    seen = []
    generate = stock_module.batch_generation

    def recorded(*given: Any) -> Any:
        token_ids = generate(*given)[0]
        missing = given[1].shape[1] + tiny.RESPONSE - token_ids.shape[1]
        seen.append(torch.nn.functional.pad(token_ids, (0, missing), value=tiny.PAD_ID))
        return generate_again(seen[-1], *given)

    def generate_again(token_ids: Any, model: Any, queries: Any, *_: Any) -> Any:
        output: Any = stock_module.forward(model, token_ids, tiny.PAD_ID)
        logits = output.logits[:, queries.shape[1] - 1 : -1]
        return token_ids, logits / (0.7 + 1e-7)

    def replayed(models: Any, *_: Any) -> Any:
        token_ids = seen[0].clone()
        prompt_tokens = token_ids.shape[1] - tiny.RESPONSE
        answers = token_ids[:, prompt_tokens:]
        after_eos = (answers == tiny.EOS_ID).cumsum(1) - (answers == tiny.EOS_ID).int() > 0
        answers[after_eos] = tiny.PAD_ID
        longest = (answers != tiny.PAD_ID).sum(1).max()
        rows = forward.Rows(token_ids[:, : prompt_tokens + longest + 1], prompt_tokens, tiny.PAD_ID)
        return rows, forward.answer_logprobs(models.policy, rows, 0.7)[0]

    monkeypatch.setattr(stock_module, "batch_generation", recorded)
    stock: Any = tiny.stock(tiny.arguments(tmp_path, **args), model=policy())
    # ours never samples the padding token, which has a probability of 1/400 under stock in these random models
    for model in (stock.policy_model, stock.ref_model):
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: ban(logits))
    torch.manual_seed(4)
    stock.train()
    monkeypatch.setattr(rollouts, "sample", replayed)
    ours = tiny.ours(tiny.arguments(tmp_path, **args), model=policy())
    ours.train()
    return stock, ours


def ban(logits: torch.Tensor) -> None:
    logits.detach()[..., tiny.PAD_ID] = -1e4


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (tiny.policy, {}),
        (tiny.policy, {"kl_estimator": "k3", "gamma": 0.9, "num_ppo_epochs": 3}),
        (tiny.often_stopping_policy, {"missing_eos_penalty": 2.0}),
        (lambda: tiny.often_stopping_policy(10), {"missing_eos_penalty": 2.0}),
    ],
    ids=["plain", "k3, discount, 3 epochs", "answers that stop", "all answers stop early"],
)
def test_the_first_update_equals_that_of_stock(tmp_path, monkeypatch, policy, changes):
    stock, ours = first_update_of_both(tmp_path, monkeypatch, policy, **changes)
    expected, found = stock.state.log_history[0], ours.state.log_history[0]
    names = [name for name in expected if name.startswith(("objective/", "loss/"))]
    if policy is tiny.policy:
        assert found["answer/tokens"] == tiny.RESPONSE  # without padding, the other means of stock are right too
        names += ["policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "val/clipfrac_avg", "val/ratio"]
    else:
        assert found["answer/tokens"] < tiny.RESPONSE
    assert len(names) >= 7
    assert {n: found[n] for n in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-5, abs=1e-5)
    for model in ("policy_model", "value_model"):
        weights = zip(getattr(ours, model).parameters(), getattr(stock, model).parameters(), strict=True)
        assert max((our - their).abs().max().item() for our, their in weights) < 1e-5


def test_stock_averages_over_padding_and_ours_over_tokens(tmp_path, monkeypatch):
    at_tokens = []
    passed = forward.answer_logprobs

    def noted(model: Any, rows: Any, temperature: float) -> Any:
        logprobs, entropies = passed(model, rows, temperature)
        if logprobs.requires_grad:
            at_tokens.append(entropies[rows.is_token])
        return logprobs, entropies

    monkeypatch.setattr(forward, "answer_logprobs", noted)
    stock, ours = first_update_of_both(tmp_path, monkeypatch, tiny.often_stopping_policy, learning_rate=0.0)
    expected = at_tokens[0].mean().item()
    assert tiny.logged(ours, "policy/entropy_avg") == pytest.approx([expected], rel=1e-5)
    assert abs(tiny.logged(stock, "policy/entropy_avg")[0] - expected) > 0.1
