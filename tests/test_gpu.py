"""What only a GPU runs, on a GPU, beside the same on the CPU; `make test-gpu` runs these."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint

from gpt2_rlhf.models import attention, packing, sampling, tokens
from helpers import ppo_tiny as tiny
from helpers.tiny import eos_prone, tiny_policy, tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # kernels warn of their own limits

GPU = torch.device("cuda")
TOKENIZER = tiny_tokenizer()
HEADS, WIDTH = 12, 64  # of GPT-2


@pytest.fixture(autouse=True)
def a_gpu() -> None:
    assert torch.cuda.is_available(), "these tests need a GPU that torch can use"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_window", [False, True])
@pytest.mark.parametrize("kv_heads", [12, 3])
def test_the_varlen_kernel_agrees_with_sdpa(dtype: torch.dtype, has_window: bool, kv_heads: int) -> None:
    shapes = tuple(torch.Size((heads, WIDTH)) for heads in (HEADS, kv_heads, kv_heads))
    assert attention._varlen_fault(GPU, dtype, shapes, has_window, None) is None


def logits_and_gradient(device: torch.device, dtype: torch.dtype, is_packed: bool) -> tuple[Tensor, Tensor]:
    """Return those of three rows of 9, 4 and 1 tokens without dropout, on the CPU."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 200, (3, 9), generator=generator).to(device)
    mask = (torch.arange(9) < torch.tensor([9, 4, 1])[:, None]).long().to(device)
    model = tiny_policy(TOKENIZER).to(device).eval()  # type: ignore[arg-type]  # transformers' stub of `to` takes no device
    if is_packed:
        packing.without_padding(model, 9)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()].float()
    logits.logsumexp(-1).square().sum().backward()
    gradient = torch.cat([weights.grad.flatten() for weights in model.parameters() if weights.grad is not None])
    return logits.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03), (torch.float16, 0.01)])
def test_packed_rows_give_the_logits_and_gradients_of_padded_rows_on_the_cpu(dtype: torch.dtype, rtol: float) -> None:
    expected = logits_and_gradient(torch.device("cpu"), torch.float32, is_packed=False)
    ours = logits_and_gradient(GPU, dtype, is_packed=True)
    for found, right in zip(ours, expected, strict=True):
        assert float((found - right).norm() / right.norm()) < rtol


PROMPTS = [f"\n\nHuman: {text}?\n\nAssistant:" for text in ("Hi", "Tell me about the sea", "And bread", "What of it")]


def sampled(device: str, cache: str | None, new_tokens: int = 24) -> tuple[list[list[int]], list[list[float]]]:
    draws = torch.rand(4, new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    model = eos_prone(TOKENIZER).to(device)  # type: ignore[arg-type]  # as above
    prompts = tokens.encode_prompts(TOKENIZER, PROMPTS)
    return sampling.sample_ids(
        model, prompts, draws, temperature=1.0, eos_token_id=tokens.eos_id(TOKENIZER), never_token_id=3, batch_size=4,
        cache=cache,
    )  # fmt: skip


@pytest.mark.parametrize("cache", [None, *sampling.CACHES])
def test_answers_are_those_of_the_cpu_with_every_cache(cache: str | None) -> None:
    ids, logprobs = sampled("cuda", cache)
    expected_ids, expected = sampled("cpu", None)
    assert ids == expected_ids
    assert np.concatenate(logprobs) == pytest.approx(np.concatenate(expected), abs=1e-4)


def test_sampling_waits_for_the_gpu_at_the_checks_alone() -> None:
    def waits(new_tokens: int) -> int:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                sampled("cuda", None, new_tokens)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(one.message) for one in found)

    waits(8)  # kernels are loaded
    per_token = (waits(24) - waits(8)) / 16
    assert per_token <= 3 / 8  # at a check: which have ended, and those of the cache that go on


def test_the_first_gradient_of_ppo_is_that_of_the_cpu(tmp_path: Path) -> None:
    expected, logged = tiny.gradient_of_one_step(tmp_path / "cpu", 8, 1)
    ours, logged_here = tiny.gradient_of_one_step(tmp_path / "gpu", 8, 1, use_cpu=False)
    assert float((ours.cpu() - expected).norm() / expected.norm()) < 1e-4
    assert logged_here == pytest.approx(logged, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_resumed_ppo_run_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path, precision: str) -> None:
    def arguments(name: str) -> Any:
        half = {} if precision == "float32" else {precision: True}
        saves = {"total_episodes": 20, "save_strategy": "steps", "save_steps": 1}
        return tiny.arguments(tmp_path / name, use_cpu=False, **saves, **half)

    straight = tiny.ours(arguments("straight"))
    straight.train()
    again = tiny.ours(arguments("again"))
    again.train()
    assert tiny.trained_digest(again) == tiny.trained_digest(straight)
    with pytest.raises(KeyboardInterrupt):
        tiny.ours(arguments("stopped"), callbacks=[tiny.Interrupt(after=2)]).train()
    resumed = tiny.ours(arguments("stopped"))
    resumed.train(get_last_checkpoint(str(tmp_path / "stopped")))
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)
    assert resumed.state.global_step == 5
