"""How packed rows attend on an accelerator, on a CPU: torch's varlen kernel is replaced by its documented contract."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2_rlhf.models import attention, packing
from gpt2_rlhf.models.attention import Way
from helpers import families, ppo_tiny
from helpers.tiny import tiny_policy, tiny_tokenizer
from helpers.waits import Waits

LENGTHS = [9, 0, 1, 5]
IS_TOKEN = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
HEADS, KV_HEADS, WIDTH = 4, 2, 8
LAYERS = 2  # of the models of helpers.families


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn as its documentation describes it, by one dense mask."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q[0] == 0
    assert cu_seq_q[-1] == len(query) == len(key) == len(value)
    assert max_q >= cu_seq_q.diff().max()
    assert max_k >= cu_seq_k.diff().max()
    assert query.dtype == key.dtype == value.dtype
    assert all(part.stride(-1) == 1 for part in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa or groups == 1
    row = torch.bucketize(torch.arange(len(query)), cu_seq_q[1:].long(), right=True)
    place = torch.arange(len(query)) - cu_seq_q.long()[row]
    back = place[:, None] - place[None]
    left, right = window_size
    hidden = row[:, None] != row[None]
    if left >= 0:
        hidden = hidden | (back > left)
    if right >= 0:
        hidden = hidden | (-back > right)
    q, k, v = (part.float().transpose(0, 1) for part in (query, key, value))
    k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    scores = q @ k.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(0, 1).to(query.dtype)


@pytest.fixture(autouse=True)
def first_use() -> Iterator[None]:
    attention._varlen_fault.cache_clear()
    attention.say_once.cache_clear()
    yield
    attention._varlen_fault.cache_clear()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Attend as on CUDA, with the documented kernel; return the types of its calls."""
    calls: list[torch.dtype] = []

    def called(query: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(query.dtype)
        return documented(query, *args, **options)

    of_cuda = attention._way
    monkeypatch.setattr(attention, "varlen_attn", called)
    monkeypatch.setattr(attention, "_way", lambda _device, dtype, dropout: of_cuda("cuda", dtype, dropout))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_cuda_in_half_precision_without_dropout_attends_by_varlen(dtype: torch.dtype, dropout: float) -> None:
    is_half = dtype in (torch.bfloat16, torch.float16)
    assert attention._way("cpu", dtype, dropout) is attention._row_by_row
    assert attention._way("mps", dtype, dropout) is attention._padded
    on_cuda = attention._way("cuda", dtype, dropout)
    assert on_cuda is (attention._by_varlen if is_half and not dropout else attention._padded)


def test_cudnn_which_plans_anew_for_each_shape_is_not_used() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def states(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(heads: int) -> Tensor:
        drawn = torch.randn(1, sum(LENGTHS), heads, WIDTH, generator=generator)
        return drawn.to(dtype).transpose(1, 2).requires_grad_()

    return draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)


def numbers(way: Way, given: tuple[Tensor, Tensor, Tensor], window: int | None, scale: float | None) -> list[Tensor]:
    """Attended states and the gradients of query, key and value."""
    module = nn.Module()
    module.num_key_value_groups = HEADS // KV_HEADS  # type: ignore[assignment]
    attended = way(module, given, attention.packed_rows(IS_TOKEN), window, {"scaling": scale, "dropout": 0.0})
    assert attended.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    weights = torch.linspace(-1, 1, attended.numel()).view(attended.shape)
    return [part.float() for part in (attended, *torch.autograd.grad((attended.float() * weights).sum(), given))]


@pytest.mark.parametrize("way", ["_padded", "_by_varlen"])
@pytest.mark.parametrize("window", [None, 3, 5, 50])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.usefixtures("kernel")
def test_one_call_for_all_rows_gives_the_numbers_and_gradients_of_a_call_a_row(
    way: str, window: int | None, scale: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = numbers(attention._row_by_row, states(), window, scale)
    for ours, theirs in zip(numbers(getattr(attention, way), states(), window, scale), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert capsys.readouterr().out == ""  # no kernel was refused


def off_by_one(query: Tensor, *args: Any, window_size: tuple[int, int], **options: Any) -> Tensor:
    return documented(query, *args, window_size=(window_size[0] + 1, window_size[1]), **options)


def not_causal(query: Tensor, *args: Any, window_size: tuple[int, int], **options: Any) -> Tensor:
    return documented(query, *args, window_size=(window_size[0], -1), **options)


def without_scale(query: Tensor, *args: Any, scale: float | None, **options: Any) -> Tensor:
    return documented(query, *args, **options)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor) -> Tensor:
        return attended.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 1.2


def wrong_gradient(*args: Any, **options: Any) -> Tensor:
    return WrongGradient.apply(documented(*args, **options))


def missing(*_args: Any, **_options: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports\nAmpere GPUs or newer.")


@pytest.mark.parametrize("broken", [off_by_one, not_causal, without_scale, wrong_gradient, missing])
@pytest.mark.usefixtures("kernel")
def test_a_kernel_that_fails_or_differs_is_not_used_and_a_line_says_so(
    broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", broken)
    expected = numbers(attention._row_by_row, states(torch.bfloat16), 3, 0.7)
    for _ in range(2):
        for ours, theirs in zip(numbers(attention._by_varlen, states(torch.bfloat16), 3, 0.7), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05)
    why = "varlen_attn fails (RuntimeError: FlashAttention only supports Ampere" if broken is missing else "differs"
    printed = capsys.readouterr().out
    assert printed.startswith("  attention on cpu pads the rows: ")
    assert why in printed
    assert printed.count("\n") == 1


def rows_of_text() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 150, IS_TOKEN.shape, generator=torch.Generator().manual_seed(2))
    return ids, IS_TOKEN, IS_TOKEN & (IS_TOKEN.cumsum(1) > 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
def test_a_model_under_autocast_calls_the_kernel_once_a_layer_in_half_precision(
    family: str, kernel: list[torch.dtype]
) -> None:
    model = families.policy(family).eval()
    inputs = rows_of_text()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert packing._packs(model, inputs[0].shape[1])
        kernel.clear()
        ours = packing.logits_at(model, *inputs)
        assert kernel == [torch.bfloat16] * LAYERS
        own = [
            model(input_ids=ids[:count][None]).logits[0, 1:]
            for ids, count in zip(inputs[0], LENGTHS, strict=True)
            if count
        ]
    torch.testing.assert_close(ours.float(), torch.cat(own).float(), rtol=0, atol=0.1)  # bfloat16


def test_a_model_whose_numbers_are_wrong_in_half_precision_alone_runs_with_padding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dropping_the_scale(module: Any, given: Any, rows: Any, window: Any, options: dict[str, Any]) -> Tensor:
        return attention._padded(module, given, rows, window, {**options, "scaling": 1.0})

    def by_precision(_device: str, dtype: torch.dtype, _dropout: float) -> Way:
        return attention._row_by_row if dtype == torch.float32 else dropping_the_scale

    monkeypatch.setattr(attention, "_way", by_precision)
    model = families.policy("llama").eval()
    assert packing._packs(model, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert not packing._packs(model, 9)
    assert "llama runs with padding: packed rows differ by" in capsys.readouterr().out
    assert packing._packs(model, 9)


def test_the_kernel_can_be_compared_within_inference_mode(
    kernel: list[torch.dtype], capsys: pytest.CaptureFixture[str]
) -> None:
    model = families.policy("llama").eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        packing.logits_at(model, *rows_of_text())
    assert torch.bfloat16 in kernel
    assert attention._varlen_fault.cache_info().currsize == 1
    assert capsys.readouterr().out == ""


def test_the_kernel_can_be_compared_within_an_activation_checkpoint(kernel: list[torch.dtype]) -> None:
    model = tiny_policy(tiny_tokenizer()).eval()
    packing.without_padding(model, 64)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ids, mask, _ = rows_of_text()
    with torch.autocast("cpu", torch.bfloat16):
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.sum().backward()
    assert torch.bfloat16 in kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("kernel")
def test_a_pass_waits_for_the_device_for_the_numbers_of_tokens_only(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the kernel's stand-in itself reads values
    monkeypatch.setattr(attention, "varlen_attn", lambda query, key, *_args, **_options: query.clone())
    monkeypatch.setattr(attention, "_varlen_fault", lambda *_: None)
    monkeypatch.setattr(packing, "_fault", lambda *_, **__: None)
    monkeypatch.delattr(attention.PackedRows, "row_tokens")  # a list on the host, which no operation would show
    model = families.policy("llama").eval()
    nn.Module.to(model, dtype)
    with torch.no_grad(), Waits() as waits:
        packing.logits_at(model, *rows_of_text())
    assert waits.count == 2  # how many tokens there are, and how many are read


def test_without_packed_rows_attention_is_that_of_transformers() -> None:
    query, key, value = (torch.randn(2, 2, 5, 4) for _ in range(3))
    ours, _ = attention.attend_within_rows(nn.Module(), query, key, value, None)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(ours, expected)


def test_gpt2_has_the_same_gradients_where_rows_attend_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ppo_tiny.policy().eval()

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        packing.logits_at(model, *rows_of_text()).float().log_softmax(-1)[:, 7].sum().backward()
        return [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    monkeypatch.setattr(attention, "_way", lambda *_: attention._padded)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
