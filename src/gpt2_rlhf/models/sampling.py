"""Sample answers to prompts, the same for the same seed whatever the batch size.

Plain ancestral sampling at a temperature. `model.generate` is not used: it takes unset options from the model's own
generation config (top-k, repetition penalty), draws from the global generator, and computes finished rows until the
last row has finished. Each prompt has its own uniform draws; inverse-CDF sampling gives common random numbers across
models, so paired differences have less variance.

An accelerator computes ahead of the host, which must wait to learn which answers have ended. So it asks every few
tokens, and an answer that ended is padded until then; the answers are the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import packing, roomy_cache, tokens
from gpt2_rlhf.models.scoring import Show, by_length, inference

CACHES = ("static", "compiled")  # ways to keep keys and values other than the default, which grows with the answers
_TOKENS_A_CHECK = 8  # on an accelerator
_STATIC_TOKENS = 64  # a static cache has a multiple of these, so that fewer shapes are compiled


@dataclass(frozen=True)
class Answer:
    """One sampled answer: text without special tokens, token ids without EOS, and whether EOS was sampled."""

    text: str
    ids: list[int]
    ended: bool

    def sampled_ids(self, eos_token_id: int) -> list[int]:
        """Return the token ids with EOS where it was sampled."""
        return [*self.ids, eos_token_id] if self.ended else self.ids


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    show: Show = iter,
) -> list[Answer]:
    """Return one answer per prompt, in the order given, sampled from the whole vocabulary.

    An answer ends with EOS or after `max_new_tokens`. Its text is not cut, even where the model writes the next turn.
    `tokenizer` is the saved one. No global random state is read or changed.

    Raises:
        UserError: a prompt and its answer need more positions than the model has.
    """
    prompt_ids = tokens.encode_prompts(tokenizer, prompts)
    longest = max((len(ids) for ids in prompt_ids), default=0)
    positions = model.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} after a prompt of {longest} tokens; expected at most {positions} tokens "
            f"together (the model's positions); give at most {positions - longest}, or lower data.max_prompt_tokens"
        )
    draws = torch.rand(len(prompts), max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    eos = tokens.eos_id(tokenizer)
    answers, _ = sample_ids(
        model, prompt_ids, draws, temperature=temperature, eos_token_id=eos, batch_size=batch_size, show=show
    )
    return [_answer(tokenizer, ids) for ids in answers]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    draws: torch.Tensor,
    temperature: float,
) -> Iterator[list[Answer]]:
    """Yield the answers to one prompt after each token, one answer for each row of `draws`.

    The last ones are those of `sample` with the same draws. `draws`: as for `sample_ids`.
    """
    eos = tokens.eos_id(tokenizer)
    prompt_ids = tokens.encode_prompts(tokenizer, [prompt]) * len(draws)
    steps = _sample_batch(model, prompt_ids, draws, temperature, eos, None, None)
    for count in range(1, draws.shape[1] + 1):
        with inference(model):  # not around the yield, since the code of the caller would run in it too
            sampled, _ = next(steps, (None, None))
        if sampled is None:
            return
        rows = sampled[:, :count].tolist()
        yield [_answer(tokenizer, ids[: ids.index(eos) + 1] if eos in ids else ids) for ids in rows]


def sample_ids(
    model: torch.nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    draws: torch.Tensor,
    *,
    temperature: float,
    eos_token_id: int,
    never_token_id: int | None = None,
    batch_size: int,
    cache: str | None = None,
    show: Show = iter,
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the sampled token ids of each prompt, with EOS where it was sampled, and their log-probabilities in nats.

    `draws`: shape (prompts, most new tokens), uniform in [0, 1). `never_token_id` gets probability 0; it may lie
    outside the vocabulary. `cache`: one of CACHES, or None.
    """
    answers: list[list[int]] = [[] for _ in prompt_ids]
    logprobs: list[list[float]] = [[] for _ in prompt_ids]
    with inference(model):
        for batch in show(by_length([len(ids) for ids in prompt_ids], batch_size)):
            prompts = [prompt_ids[row] for row in batch]
            steps = _sample_batch(model, prompts, draws[batch], temperature, eos_token_id, never_token_id, cache)
            *_, (sampled, sampled_logprobs) = steps
            ended = (sampled == eos_token_id).int()
            lengths = ((ended.cumsum(1) - ended) == 0).sum(1)
            for place, (row, length) in enumerate(zip(batch, lengths.tolist(), strict=True)):
                answers[row] = sampled[place, :length].tolist()
                logprobs[row] = sampled_logprobs[place, :length].tolist()
    return answers, logprobs


def _sample_batch(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    draws: torch.Tensor,
    temperature: float,
    eos_token_id: int,
    never_token_id: int | None,
    cache: str | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sample a token of each answer, and yield all ids (EOS from the first EOS on) and their log-probabilities.

    Both have the shape of `draws`, and are the same tensors each time, filled further.
    """
    longest = max(len(ids) for ids in prompt_ids)
    padding = [longest - len(ids) for ids in prompt_ids]
    device, new_tokens = next(model.parameters()).device, draws.shape[1]
    # a float32 sum over 50,257 probabilities loses the rarest tokens, but Apple's GPUs have no float64
    draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
    columns = longest + new_tokens if cache is None else -(-(longest + new_tokens) // _STATIC_TOKENS) * _STATIC_TOKENS
    ids = torch.tensor(
        [[eos_token_id] * pad + list(row) for pad, row in zip(padding, prompt_ids, strict=True)], device=device
    )
    mask = torch.tensor([[0] * pad + [1] * (columns - pad) for pad in padding], device=device)
    positions = (mask[:, :longest].cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(prompt_ids), device=device)  # those that the cache holds
    has_ended = torch.zeros(len(prompt_ids), dtype=torch.bool, device=device)
    sampled = torch.full(draws.shape, eos_token_id, device=device)
    logprobs = torch.zeros_like(draws)
    tokens_a_check = _tokens_a_check(device)
    if cache is not None:
        states: Any = _OneType(model.config, max_cache_len=columns)
    else:
        states = None if tokens_a_check == 1 else _UnreadMasks(config=model.config)  # None: the model makes its own
    compute = model
    for step in range(new_tokens):
        with packing.last_column_alone(model) if step == 0 else nullcontext():
            output = compute(
                input_ids=ids,
                # a static cache needs masks of one shape; causal attention hides the tokens to come
                attention_mask=mask if cache else mask[:, : longest + step],
                position_ids=positions,
                past_key_values=states,
                use_cache=True,
                logits_to_keep=1,
            )
        states = output.past_key_values
        if step == 0 and device.type == "cpu":  # not measured elsewhere
            roomy_cache.give_room(states, columns)
        if cache == "compiled":
            compute = model.get_compiled_call(None)  # not for prompts, whose lengths vary
        logits = output.logits[:, -1].float() / temperature
        if never_token_id is not None:
            logits[:, never_token_id : never_token_id + 1] = -torch.inf
        probabilities = logits.softmax(-1).to(draws.dtype)
        chosen = _invert_cdf(probabilities, draws[rows, step])
        chosen_logprobs = probabilities.gather(1, chosen[:, None])[:, 0].log()
        chosen = chosen.masked_fill(has_ended, eos_token_id)
        sampled[rows, step] = chosen
        logprobs[rows, step] = chosen_logprobs.masked_fill(has_ended, 0)
        has_ended = has_ended | (chosen == eos_token_id)
        yield sampled, logprobs
        if (step + 1) % tokens_a_check == 0:
            unfinished = (~has_ended).nonzero()[:, 0]
            if unfinished.numel() == 0:
                break
            if unfinished.numel() < rows.numel() and cache is None:
                rows, chosen, has_ended = rows[unfinished], chosen[unfinished], has_ended[unfinished]
                mask, positions = mask[unfinished], positions[unfinished]
                states.batch_select_indices(unfinished)
        ids = chosen[:, None]
        positions = positions[:, -1:] + 1


def _tokens_a_check(device: torch.device) -> int:
    """Return after how many tokens to look for answers that have ended; a CPU computes nothing ahead."""
    return 1 if device.type == "cpu" else _TOKENS_A_CHECK


class _UnreadMasks(DynamicCache):
    """A cache for which transformers makes each step's mask without reading the padding from the device."""

    is_compileable = True  # type: ignore[assignment]  # masking_utils.create_causal_mask reads it, and nothing else here


class _OneType(StaticCache):
    """A static cache whose keys have the type of the values: under autocast, rotary positions make them float32."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states.to(value_states.dtype), value_states, layer_idx, *args, **kwargs)


def _invert_cdf(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return the token at which each row's cumulative probability first exceeds its draw, shape (rows,).

    Shapes: probabilities (rows, vocabulary), draws (rows,), uniform in [0, 1).
    """
    cumulative = probabilities.cumsum(-1)
    # rounding may leave the last sum below 1; scaling the draws keeps every one inside
    targets = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=probabilities.shape[-1] - 1)


def _answer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Answer:
    ended = bool(ids) and ids[-1] == tokens.eos_id(tokenizer)
    content = ids[:-1] if ended else ids
    # clean-up would change spaces that the model wrote
    text = tokenizer.decode(content, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text=str(text), ids=content, ended=ended)
