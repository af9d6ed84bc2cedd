from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, TaskType, get_peft_model
from torch._dynamo.exc import TorchRuntimeError

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.ppo_trainer import forward, rollouts, updates
from gpt2_rlhf.ppo_trainer.metrics import Clock, Means
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from helpers import ppo_tiny as tiny

PROMPTS = tiny.prompts(12)["input_ids"]


DRAWS = np.random.default_rng(0).random((len(PROMPTS), tiny.RESPONSE))


def models_with(policy):
    return rollouts.Models(
        policy=policy.eval(),
        reference=tiny.policy().eval(),
        value_model=tiny.scorer(2).eval(),
        score=partial(forward.answer_scores, tiny.scorer(1).eval()),
        eos_token_id=tiny.EOS_ID,
        pad_token_id=tiny.PAD_ID,
    )


def arguments(rows_per_call=12):
    args = tiny.arguments(Path("unused"), temperature=0.7)
    args.local_rollout_forward_batch_size = rows_per_call
    return args


def sample(policy, rows_per_call=12):
    return rollouts.sample(models_with(policy), PROMPTS, DRAWS, arguments(rows_per_call))


def test_log_probabilities_of_the_rollout_equal_those_of_the_update():
    policy = tiny.often_stopping_policy()
    rows, logprobs = sample(policy)
    lengths = rows.is_token.sum(1)
    assert lengths.min() < lengths.max()  # otherwise the test would not cover answers that stop
    with torch.no_grad():
        expected, _ = forward.answer_logprobs(policy, rows, 0.7)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    assert (logprobs[~rows.is_token] == 0).all()


@pytest.mark.parametrize("rows_per_call", [1, 5])
def test_answers_do_not_depend_on_the_number_sampled_at_once(rows_per_call):
    policy = tiny.often_stopping_policy()
    assert torch.equal(sample(policy, rows_per_call)[0].token_ids, sample(policy)[0].token_ids)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft
@pytest.mark.parametrize("adapter", [False, True])
def test_a_static_cache_gives_the_same_answers_to_the_policy_and_to_one_with_an_adapter(adapter: bool) -> None:
    policy = tiny.often_stopping_policy()
    if adapter:
        lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type=TaskType.CAUSAL_LM)
        policy = get_peft_model(policy, lora)
    models = models_with(policy)
    rows, logprobs = rollouts.sample(models, PROMPTS, DRAWS, arguments())
    static, static_logprobs = rollouts.sample(replace(models, cache="static"), PROMPTS, DRAWS, arguments())
    assert torch.equal(static.token_ids, rows.token_ids)
    torch.testing.assert_close(static_logprobs, logprobs, rtol=0, atol=1e-5)


def test_a_model_that_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: Any, **__: Any) -> Any:
        raise TorchRuntimeError("no working C++ compiler\nsee above")

    policy = tiny.policy()
    monkeypatch.setattr(policy, "get_compiled_call", lambda _: compiled)
    models = replace(models_with(policy), cache="compiled")
    with pytest.raises(UserError, match=r"^ppo\.rollout_cache: compiled: .* \(no working.*above\)"):
        rollouts.sample(models, PROMPTS, DRAWS, arguments())


def test_a_compiled_call_gets_every_token_but_the_first_in_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, shapes = tiny.often_stopping_policy(), set()
    expected, _ = sample(policy)

    def compiled(**given: Any) -> Any:
        shapes.add((given["input_ids"].shape, given["attention_mask"].shape, given["position_ids"].shape))
        return policy(**given)

    monkeypatch.setattr(policy, "get_compiled_call", lambda _: compiled)
    rows, _ = rollouts.sample(replace(models_with(policy), cache="compiled"), PROMPTS, DRAWS, arguments())
    assert torch.equal(rows.token_ids, expected.token_ids)
    assert shapes == {((len(PROMPTS), 1), (len(PROMPTS), 64), (len(PROMPTS), 1))}


def test_rows_are_left_padded_prompts_and_answers_that_end_with_eos_or_at_the_limit():
    rows, _ = sample(tiny.often_stopping_policy())
    for row, prompt in zip(rows.token_ids.tolist(), PROMPTS, strict=True):
        padding, answer = row[: rows.prompt_tokens - len(prompt)], row[rows.prompt_tokens :]
        assert set(padding) <= {tiny.PAD_ID}
        assert row[rows.prompt_tokens - len(prompt) : rows.prompt_tokens] == prompt
        content = [token for token in answer if token != tiny.PAD_ID]
        assert answer == content + [tiny.PAD_ID] * (len(answer) - len(content))
        assert content[-1] == tiny.EOS_ID or len(content) == tiny.RESPONSE
        assert tiny.EOS_ID not in content[:-1]


def test_a_row_has_the_same_values_and_targets_alone_as_beside_longer_rows():
    models, args = models_with(tiny.often_stopping_policy()), arguments()

    def targets(which: list[int]) -> updates.Batch:
        prompts = [PROMPTS[row] for row in which]
        rollout = rollouts.roll_out(models, prompts, DRAWS[which], args, accelerator, Clock())
        return updates.prepare(rollout, accelerator, args, 0.1, Shaping(), Means())

    accelerator = Accelerator(cpu=True)
    together = targets(list(range(len(PROMPTS))))
    lengths = together.rows.is_token.sum(1).tolist()
    assert max(lengths) == tiny.RESPONSE  # as wide as it can be
    for row in [row for row, length in enumerate(lengths) if length < tiny.RESPONSE]:
        pair = targets([row, row])  # whitening needs two rows
        assert pair.rows.has_value[0].sum() == lengths[row] + 1
        for name in ("values", "returns"):
            alone, beside = getattr(pair, name)[0], getattr(together, name)[row]
            torch.testing.assert_close(alone[: lengths[row] + 1], beside[: lengths[row] + 1], rtol=0, atol=1e-5)


def test_the_padding_token_is_never_sampled():
    rows, _ = sample(tiny.always_says(tiny.policy(), tiny.PAD_ID))
    assert rows.is_token.sum(1).min() >= 1
    assert rows.is_token.all() or (rows.answers == tiny.EOS_ID).any()


def batches(first: int, count: int, seed: int = 5) -> list[list[int]]:
    return [rollouts.prompt_batch(range(10), first + place, 4, seed) for place in range(count)]


def test_the_order_of_prompts_from_any_update_is_the_tail_of_the_order_from_the_start():
    whole = batches(0, 7)
    assert all(batches(start, 7 - start) == whole[start:] for start in range(7))


def test_a_pass_gives_each_prompt_once_and_passes_have_different_orders():
    passes = []
    for first in (0, 2):  # 10 prompts in batches of 4: two batches in a pass, two prompts left out
        rows = [row for batch in batches(first, 2) for row in batch]
        assert len(rows) == len(set(rows)) == 8
        passes.append(rows)
    assert passes[0] != passes[1]
    assert batches(0, 2, seed=6) != batches(0, 2)


def test_the_global_generator_does_not_change_the_order_of_prompts():
    np.random.seed(1)
    first = batches(0, 3)
    np.random.seed(2)
    assert batches(0, 3) == first
