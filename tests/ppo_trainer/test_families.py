"""Policies, critics and reward models of other families than GPT-2, against the models' own forward pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpt2_rlhf.models import attention, packing
from gpt2_rlhf.ppo_trainer import PPOTrainer, forward
from helpers import families, ppo_tiny

PACKED = ("llama", "qwen2", "mistral", "gpt_neox", "opt", "qwen3", "mixtral", "qwen2_moe", "phi")
PADDED = ("gemma2", "stablelm", "gptj", "gpt_neo", "falcon", "bloom", "mpt", "gpt_oss")
WITHOUT_A_SCORER = ("granite", "cohere")  # transformers has no sequence classifier for them
PROMPTS, ANSWERS = (9, 3, 6), (5, 8, 1)  # in tokens


@pytest.fixture
def rows() -> forward.Rows:
    token_ids = torch.full((3, max(PROMPTS) + max(ANSWERS)), ppo_tiny.PAD_ID)
    generator = torch.Generator().manual_seed(0)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        part = slice(max(PROMPTS) - prompt, max(PROMPTS) + answer)
        token_ids[row, part] = torch.randint(0, 150, (prompt + answer,), generator=generator)
    return forward.Rows(token_ids, max(PROMPTS), ppo_tiny.PAD_ID)


def one_by_one(rows: forward.Rows, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The result for each row's tokens alone, without padding."""
    return [compute(ids[ids != rows.pad_token_id][None])[0] for ids in rows.token_ids]


def own_logprobs(policy: PreTrainedModel, rows: forward.Rows) -> Tensor:
    """Log-probabilities of the answers by the model's own forward, where the padding token has probability 0."""
    logits = one_by_one(rows, lambda ids: policy(input_ids=ids, use_cache=False).logits.float())
    found = torch.zeros(rows.answers.shape)
    for row, of_row in enumerate(logits):
        answer = rows.answers[row, : ANSWERS[row]]
        without_padding = of_row.index_fill(1, torch.tensor([rows.pad_token_id]), -torch.inf)
        logprobs = without_padding[PROMPTS[row] - 1 : -1].log_softmax(-1)
        found[row, : ANSWERS[row]] = logprobs.gather(1, answer[:, None])[:, 0]
    return found


def gradients(model: PreTrainedModel, numbers: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    numbers.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: PreTrainedModel, ours: Tensor, own: Tensor) -> None:
    expected = gradients(model, own)
    found = gradients(model, ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", [*PACKED, *PADDED, *WITHOUT_A_SCORER])
def test_logprobs_and_their_gradients_are_those_of_the_models_own_forward(family: str, rows: forward.Rows) -> None:
    policy = families.policy(family).eval()
    logprobs, _ = forward.answer_logprobs(policy, rows, 1.0)
    own = own_logprobs(policy, rows)
    torch.testing.assert_close(logprobs, own, rtol=0, atol=1e-4)
    assert own.abs().max() > 1
    assert_same_gradients(policy, logprobs, own)


@pytest.mark.parametrize("family", [*PACKED, *PADDED])
def test_scores_values_and_their_gradients_are_those_of_the_models_own_forward(family: str, rows: forward.Rows) -> None:
    scorer: Any = families.scorer(family).eval()
    states = one_by_one(rows, lambda ids: scorer.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    scores = one_by_one(rows, lambda ids: scorer(input_ids=ids, use_cache=False).logits)
    torch.testing.assert_close(forward.answer_scores(scorer, rows), torch.cat(scores), rtol=0, atol=1e-4)
    own = [scorer.score(of_row[prompt - 1 : -1])[:, 0] for of_row, prompt in zip(states, PROMPTS, strict=True)]
    values = forward.answer_values(scorer, rows)
    ours = [of_row[:answer] for of_row, answer in zip(values, ANSWERS, strict=True)]
    torch.testing.assert_close(torch.cat(ours), torch.cat(own), rtol=0, atol=1e-4)
    assert_same_gradients(scorer, torch.cat(ours), torch.cat(own))


@pytest.mark.parametrize("family", [*PACKED, *PADDED, *WITHOUT_A_SCORER])
def test_logprobs_under_bf16_are_those_of_the_models_own_forward(family: str, rows: forward.Rows) -> None:
    policy = families.policy(family).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = forward.answer_logprobs(policy, rows, 1.0)
        own = own_logprobs(policy, rows)
    torch.testing.assert_close(logprobs, own, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("family", "reason"),
    [(family, None) for family in PACKED]
    + [
        ("gemma2", "its attention is eager, not sdpa"),
        ("stablelm", "packed rows differ by "),
        ("falcon", "packed rows fail (TypeError: "),
    ],
)
def test_a_line_says_why_a_model_runs_with_padding(
    family: str, reason: str | None, rows: forward.Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    attention.say_once.cache_clear()
    policy = families.policy(family).train()
    for _ in range(2):
        forward.answer_logprobs(policy, rows, 1.0)
    printed = capsys.readouterr().out
    assert printed.count("\n") == (reason is not None)
    assert reason is None or printed.startswith(f"  {family} runs with padding: {reason}")
    assert policy.training


def test_a_window_is_compared_when_rows_exceed_it(rows: forward.Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = families.policy("mistral").eval()
    short = forward.Rows(rows.token_ids[2:, 3:7], 3, rows.pad_token_id)
    forward.answer_logprobs(policy, short, 1.0)
    monkeypatch.setattr(attention, "_mask", lambda *_: None)  # as if the window were dropped
    torch.testing.assert_close(
        forward.answer_logprobs(policy, rows, 1.0)[0], own_logprobs(policy, rows), rtol=0, atol=1e-4
    )
    monkeypatch.undo()
    assert not packing._packs(policy, 4)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_whose_numbers_were_compared_with_those_of_a_whole_copy_is_not_compared_itself(
    bf16: bool, rows: forward.Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, whole = families.policy("mistral").eval(), families.policy("mistral").eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        packing.packs_as(policy, whole, rows.token_ids.shape[1])
        monkeypatch.setattr(
            packing, "_fault", lambda *_, **__: pytest.fail("a sharded model would wait for other processes")
        )
        forward.answer_logprobs(policy, rows, 1.0)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt_neox", "opt", "stablelm", "gptj"])
def test_the_ratio_is_1_before_the_first_step(family: str, bf16: bool, tmp_path: Path) -> None:
    trainer = PPOTrainer(
        args=ppo_tiny.arguments(tmp_path, num_ppo_epochs=1, total_episodes=4, bf16=bf16),
        processing_class=ppo_tiny.padding_tokenizer(),
        model=families.policy(family),
        ref_model=families.policy(family),
        reward_model=families.scorer(family, 1),
        value_model=families.scorer(family, 2),
        train_dataset=ppo_tiny.prompts(),
    )
    trainer.train()
    (update,) = trainer.state.log_history
    assert update["val/ratio"] == pytest.approx(1, abs=1e-4)
    assert update["policy/approxkl_avg"] < 1e-8
    assert update["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert update["grad_norm"] > 0
