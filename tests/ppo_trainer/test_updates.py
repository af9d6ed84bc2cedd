import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2_rlhf.models import scoring, threads
from gpt2_rlhf.ppo_trainer import forward
from helpers import ppo_tiny as tiny
from helpers import ppo_two_processes

pytestmark = pytest.mark.usefixtures("small_overheads")


@pytest.mark.parametrize("whiten_rewards", [False, True], ids=["", "whitened rewards"])
def test_an_sgd_step_is_the_same_for_any_split_of_the_batch_into_microbatches(tmp_path: Path, whiten_rewards: bool):
    whole, metrics = tiny.gradient_of_one_step(tmp_path, 8, 1, whiten_rewards=whiten_rewards)
    assert 1.5 < metrics["answer/tokens"] < tiny.RESPONSE  # with equal lengths the mean of means would be right too
    for rows, accumulation in ((4, 2), (2, 4), (1, 8)):
        split, split_metrics = tiny.gradient_of_one_step(tmp_path, rows, accumulation, whiten_rewards=whiten_rewards)
        assert (split - whole).norm() < 1e-6 * whole.norm()
        assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_an_sgd_step_is_the_same_over_one_and_over_two_processes(tmp_path: Path):
    whole, metrics = tiny.gradient_of_one_step(tmp_path / "one", 8, 1)
    ranks = ppo_two_processes.found(ppo_two_processes.steps, tmp_path)
    for rows in (4, 2, 1):
        for rank in (0, 1):
            gradient = torch.load(tmp_path / f"gradient-{rows}-{rank}.pt")
            assert (gradient - whole).norm() < 1e-6 * whole.norm()
            assert ranks[rank][str(rows)] == pytest.approx(metrics, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("adapter", [False, True], ids=["", "adapter"])
def test_models_that_compute_at_the_same_time_end_with_the_weights_of_models_that_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool
) -> None:
    names: list[str] = []

    def named(*models: Any) -> Any:
        names.append(threading.current_thread().name)
        return answer_values(*models)

    answer_values = forward.answer_values
    monkeypatch.setattr(forward, "answer_values", named)

    def weights() -> str:
        names.clear()
        peft = LoraConfig(r=2, fan_in_fan_out=True, task_type=TaskType.CAUSAL_LM) if adapter else None
        run = tiny.ours(tiny.arguments(tmp_path), model=tiny.often_stopping_policy(), peft_config=peft)
        run.train()
        return tiny.trained_digest(run)

    found = weights()
    assert len(set(names)) > 1
    monkeypatch.setattr(threads, "apart", lambda *_: False)
    assert weights() == found
    assert set(names) == {threading.current_thread().name}


def test_a_critic_that_shares_the_config_of_the_policy_takes_turns_with_it(tmp_path: Path) -> None:
    expected: Any = tiny.ours(tiny.arguments(tmp_path), value_model=tiny.scorer(2))
    expected.train()
    policy, own = tiny.policy(), tiny.scorer(2)
    for name in ("num_labels", "pad_token_id"):
        setattr(policy.config, name, getattr(own.config, name))
    critic = type(own)(policy.config)
    critic.load_state_dict(own.state_dict())
    run: Any = tiny.ours(tiny.arguments(tmp_path), model=policy, value_model=critic)
    assert (expected.model.in_threads, run.model.in_threads) == (True, False)
    run.train()
    assert tiny.trained_digest(run) == tiny.trained_digest(expected)


class MostLogits(TorchDispatchMode):
    """Keeps the largest number of tokens of which the logits, or as many other numbers, are held in one tensor."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self._vocabulary, self._width, self.tokens = vocabulary, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            # a head's weights and their gradients are as wide as the model
            shape = output.shape if isinstance(output, torch.Tensor) else ()
            if len(shape) > 1 and shape[-1] == self._vocabulary and shape[-2] != self._width:
                self.tokens = max(self.tokens, output.numel() // self._vocabulary)
        return outputs


def test_logits_are_held_for_a_bounded_number_of_tokens_with_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "apart", lambda *_: False)  # MostLogits sees one thread only
    policy = tiny.policy()
    vocabulary, width = policy.lm_head.weight.shape
    with MostLogits(vocabulary, width) as most:
        expected, expected_metrics = tiny.gradient_of_one_step(tmp_path, 8, 1)
    assert most.tokens > 5 * tiny.RESPONSE
    for rows in (2, 1):
        monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", rows * tiny.RESPONSE * vocabulary)
        with MostLogits(vocabulary, width) as most:
            step, metrics = tiny.gradient_of_one_step(tmp_path, 8, 1)
        # the comparison of packed and padded rows before the first update reads 16 tokens
        assert tiny.RESPONSE < most.tokens <= 16
        assert (step - expected).norm() < 1e-6 * expected.norm()
        assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-5)
