"""Turn prompts into sampled answers, the same for the same seed whatever the batch size and whatever runs beside it.

Plain ancestral sampling at a temperature. `model.generate` is not used: it fills what its caller leaves open from the
model's own generation config (top-k, repetition penalty), draws from the global generator, and computes rows that have
ended until the last one has. Here each prompt owns a row of uniform numbers drawn from `seed`, which the inverse of
the cumulative distribution turns into tokens; so models sampled with one seed also share their luck, and differences
between them have less noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import tokens
from gpt2_rlhf.models.scoring import by_length, inference


@dataclass(frozen=True)
class Answer:
    """One sampled answer: text without special tokens, token ids without EOS, and whether EOS was reached."""

    text: str
    ids: list[int]
    ended: bool


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> list[Answer]:
    """One answer per prompt, in the order given, drawn from the whole vocabulary up to EOS or `max_new_tokens`.

    `tokenizer` is the saved one. The text is kept as sampled: an answer that goes on to write the next turn shows it.
    No global random state is read or changed.

    Raises:
        UserError: a prompt and its answer need more positions than the model has.
    """
    prompt_ids = [tokens.encode_ppo(tokenizer, {"prompt": prompt})["input_ids"] for prompt in prompts]
    longest = max((len(ids) for ids in prompt_ids), default=0)
    positions = model.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} after a prompt of {longest} tokens; the model has {positions} "
            f"positions; give at most {positions - longest}, or a smaller data.max_prompt_tokens"
        )
    draws = torch.rand(len(prompts), max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    answers, _ = sample_ids(
        model,
        prompt_ids,
        draws,
        temperature=temperature,
        eos_token_id=tokens.eos_id(tokenizer),
        never_token_id=None,
        batch_size=batch_size,
    )
    return [_answer(tokenizer, ids) for ids in answers]


def sample_ids(
    model: torch.nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    draws: torch.Tensor,
    *,
    temperature: float,
    eos_token_id: int,
    never_token_id: int | None,
    batch_size: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids by prompt, with EOS where it was reached, and each one's log-probability in nats.

    Shapes: `draws` is (prompts, most new tokens), uniform in [0, 1). `never_token_id` gets probability 0.
    """
    answers: list[list[int]] = [[] for _ in prompt_ids]
    logprobs: list[list[float]] = [[] for _ in prompt_ids]
    with inference(model) as device:
        # a float32 sum over 50,257 probabilities loses the rarest tokens, but Apple's GPUs have nothing finer
        draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
        for batch in by_length([len(ids) for ids in prompt_ids], batch_size):
            sampled, sampled_logprobs = _sample_batch(
                model, [prompt_ids[row] for row in batch], draws[batch], temperature, eos_token_id, never_token_id
            )
            ended = (sampled == eos_token_id).int()
            lengths = ((ended.cumsum(1) - ended) == 0).sum(1)
            for place, (row, length) in enumerate(zip(batch, lengths.tolist(), strict=True)):
                answers[row] = sampled[place, :length].tolist()
                logprobs[row] = sampled_logprobs[place, :length].tolist()
    return answers, logprobs


def _sample_batch(
    model: torch.nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    draws: torch.Tensor,
    temperature: float,
    eos_token_id: int,
    never_token_id: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled ids, all EOS after the first, and their log-probabilities; both (rows, most new tokens), as `draws`."""
    longest = max(len(ids) for ids in prompt_ids)
    padding = [longest - len(ids) for ids in prompt_ids]
    device = draws.device
    ids = torch.tensor(
        [[eos_token_id] * pad + list(row) for pad, row in zip(padding, prompt_ids, strict=True)], device=device
    )
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(prompt_ids), device=device)  # those still going; the cache holds no others
    sampled = torch.full(draws.shape, eos_token_id, device=device)
    logprobs = torch.zeros_like(draws)
    cache = None
    for step in range(draws.shape[1]):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        logits = output.logits[:, -1].float() / temperature
        if never_token_id is not None:
            logits[:, never_token_id] = -torch.inf
        probabilities = logits.softmax(-1).to(draws.dtype)
        chosen = _invert_cdf(probabilities, draws[rows, step])
        sampled[rows, step] = chosen
        logprobs[rows, step] = probabilities.gather(1, chosen[:, None])[:, 0].log()
        going = (chosen != eos_token_id).nonzero()[:, 0]
        if going.numel() == 0:
            break
        if going.numel() < rows.numel():
            rows, chosen, mask, positions = rows[going], chosen[going], mask[going], positions[going]
            cache.batch_select_indices(going)
        ids = chosen[:, None]
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
        positions = positions[:, -1:] + 1
    return sampled, logprobs


def _invert_cdf(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative probability first exceeds its draw, shape (rows,).

    Shapes: probabilities (rows, vocabulary), draws (rows,), uniform in [0, 1).
    """
    cumulative = probabilities.cumsum(-1)
    # the last sum differs from 1 by rounding: scaled, every draw falls inside
    targets = draws[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=probabilities.shape[-1] - 1)


def _answer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Answer:
    ended = bool(ids) and ids[-1] == tokens.eos_id(tokenizer)
    content = ids[:-1] if ended else ids
    # clean-up would move spaces, and the text would no longer be what the model wrote
    text = tokenizer.decode(content, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text=str(text), ids=content, ended=ended)
