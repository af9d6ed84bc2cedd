"""Sample answers to prompts, the same for the same seed whatever the batch size.

Plain ancestral sampling at a temperature. `model.generate` is not used: it takes unset options from the model's own
generation config (top-k, repetition penalty), draws from the global generator, and computes finished rows until the
last row has finished. Each prompt has its own uniform draws; inverse-CDF sampling gives common random numbers across
models, so paired differences have less variance.
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
    """One sampled answer: text without special tokens, token ids without EOS, and whether EOS was sampled."""

    text: str
    ids: list[int]
    ended: bool

    def sampled_ids(self, eos_token_id: int) -> list[int]:
        """Return the token ids with EOS where it was sampled."""
        return [*self.ids, eos_token_id] if self.ended else self.ids


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each prompt."""
    return [row["input_ids"] for row in tokens.encode_ppo(tokenizer, [{"prompt": prompt} for prompt in prompts])]


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
    """Return one answer per prompt, in the order given, sampled from the whole vocabulary.

    An answer ends with EOS or after `max_new_tokens`. Its text is not cut, even where the model writes the next turn.
    `tokenizer` is the saved one. No global random state is read or changed.

    Raises:
        UserError: a prompt and its answer need more positions than the model has.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    longest = max((len(ids) for ids in prompt_ids), default=0)
    positions = model.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise UserError(
            f"max_new_tokens: {max_new_tokens} after a prompt of {longest} tokens; expected at most {positions} tokens "
            f"together (the model's positions); give at most {positions - longest}, or lower data.max_prompt_tokens"
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
    """Return the sampled token ids of each prompt, with EOS where it was sampled, and their log-probabilities in nats.

    `draws`: shape (prompts, most new tokens), uniform in [0, 1). `never_token_id` gets probability 0.
    """
    answers: list[list[int]] = [[] for _ in prompt_ids]
    logprobs: list[list[float]] = [[] for _ in prompt_ids]
    with inference(model) as device:
        # a float32 sum over 50,257 probabilities loses the rarest tokens, but Apple's GPUs have no float64
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
    """Return sampled ids (EOS after the first EOS) and their log-probabilities, both of the shape of `draws`."""
    longest = max(len(ids) for ids in prompt_ids)
    padding = [longest - len(ids) for ids in prompt_ids]
    device = draws.device
    ids = torch.tensor(
        [[eos_token_id] * pad + list(row) for pad, row in zip(padding, prompt_ids, strict=True)], device=device
    )
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rows = torch.arange(len(prompt_ids), device=device)  # those not finished; the cache holds no others
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
        unfinished = (chosen != eos_token_id).nonzero()[:, 0]
        if unfinished.numel() == 0:
            break
        if unfinished.numel() < rows.numel():
            rows, chosen = rows[unfinished], chosen[unfinished]
            mask, positions = mask[unfinished], positions[unfinished]
            cache.batch_select_indices(unfinished)
        ids = chosen[:, None]
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), dim=1)
        positions = positions[:, -1:] + 1
    return sampled, logprobs


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
