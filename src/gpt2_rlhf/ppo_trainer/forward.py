"""Compute what PPO needs of a model for rows of prompt and answer: log-probabilities, values, scores.

TRL 1.12 pads every row to the longest prompt and the longest answer of the rollout, computes logits for every token of
the prompts and discards them, and makes a dozen passes over the logits of the answers. Here the rows of a microbatch
go through the model as one sequence without padding, logits are computed for the tokens of answers only, and one pass
over them gives log-probability, entropy and gradient. The numbers are the same up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from gpt2_rlhf.models import packing, scoring, threads

# Large enough that exp() of it is 0 beside any real logit, finite so that 0 x logit in the entropy is 0 and not NaN.
_NEVER = -1e4
_LOGITS_IN_CACHE = 2**18  # 1 MiB of float32
_LOGITS_ON_GPU = 2**24  # each step makes copies of so many


@dataclass(frozen=True)
class Rows:
    """Token ids of shape (rows, columns): `prompt_tokens` columns of left padding and prompt, then the answers."""

    token_ids: Tensor
    prompt_tokens: int
    pad_token_id: int

    @property
    def answers(self) -> Tensor:
        """Token ids of shape (rows, answer), padded on the right."""
        return self.token_ids[:, self.prompt_tokens :]

    @property
    def is_token(self) -> Tensor:
        """Which of `answers` are tokens (EOS is one) and not padding."""
        return self.answers != self.pad_token_id

    @property
    def has_value(self) -> Tensor:
        """Which of `answers` have a value: the tokens and one position more, where there is room."""
        return torch.cat([torch.ones_like(self.is_token[:, :1]), self.is_token[:, :-1]], 1)

    @property
    def is_text(self) -> Tensor:
        """Which of `token_ids` are tokens of prompt or answer and not padding."""
        return self.token_ids != self.pad_token_id

    def __getitem__(self, which: Any) -> "Rows":
        return Rows(self.token_ids[which], self.prompt_tokens, self.pad_token_id)


def padded(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    answer_tokens: int,
    pad_token_id: int,
    device: torch.device | None,
) -> Rows:
    """Return prompts with their answers as rows; answer_tokens: columns of the answers, at least the longest one's."""
    prompt_tokens, padding = max(map(len, prompts)), [pad_token_id]
    token_ids = [
        padding * (prompt_tokens - len(prompt)) + [*prompt, *answer] + padding * (answer_tokens - len(answer))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Rows(torch.tensor(token_ids, device=device), prompt_tokens, pad_token_id)


class PolicyAndValue(nn.Module):
    """Policy and value model as one module, as DDP requires, with a forward pass over the answers only.

    in_threads: compute the two at the same time (models.threads), where they have nothing in common.
    """

    is_gradient_checkpointing = False  # TRL's generate_completions reads it

    def __init__(self, policy: Any, value_model: Any, in_threads: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.in_threads = in_threads and threads.apart(policy, value_model)
        self.config = policy.config  # trackers log it
        self._no_split_modules = {*policy._no_split_modules, *value_model._no_split_modules}  # FSDP shards by these

    def forward(self, rows: Rows, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probabilities and entropies in nats, and values; each (rows, answer)."""
        of_policy = partial(answer_logprobs, self.policy, rows, temperature)
        of_value_model = partial(answer_values, self.value_model, rows)
        (logprobs, entropies), values = threads.both(of_policy, of_value_model, self.in_threads)
        return logprobs, entropies, values.clone()  # FSDP warns of views


def language_model(model: nn.Module) -> Any:
    """Return the model itself, or the base model under an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def rows_at_once(policy: nn.Module, answer_tokens: int) -> int:
    """Return of how many rows the logits of answers may be held at once; the same in all processes."""
    vocabulary = language_model(policy).get_output_embeddings().weight.shape[0]
    return max(1, scoring.LOGITS_AT_ONCE // (answer_tokens * vocabulary))


def answer_logprobs(model: nn.Module, rows: Rows, temperature: float) -> tuple[Tensor, Tensor]:
    """Return each answer token's log-probability and its distribution's entropy, in nats; both (rows, answer).

    Both are 0 at padding. The padding token has probability 0, since PPO reads it as the end of an answer. The
    entropy carries no gradient.
    """
    is_token, before = rows.is_token, torch.zeros_like(rows.is_text)
    before[:, rows.prompt_tokens - 1 : -1] = is_token
    logits = packing.logits_at(language_model(model), rows.token_ids, rows.is_text, before)
    at_tokens = _Logprobs.apply(logits, rows.answers[is_token], temperature, rows.pad_token_id)
    logprobs, entropies = (values.new_zeros(is_token.shape).masked_scatter(is_token, values) for values in at_tokens)
    return logprobs, entropies


def answer_values(value_model: nn.Module, rows: Rows) -> Tensor:
    """Return the value before each token of the answers, and after the last where there is room; (rows, answer)."""
    model, first = language_model(value_model), rows.prompt_tokens - 1
    is_read = rows.is_text.clone()
    is_read[:, :first] = False
    read = packing.states_at(model, rows.token_ids, rows.is_text, is_read)
    of_answers = is_read[:, first:]
    states = read.new_zeros(*of_answers.shape, read.shape[-1])  # (rows, answer + 1, width)
    states[of_answers] = read
    return model.score(states[:, :-1]).squeeze(-1).float()


def answer_scores(reward_model: nn.Module, rows: Rows) -> Tensor:
    """Return the reward model's score at the last token of each answer, shape (rows,)."""
    model, last = language_model(reward_model), rows.prompt_tokens - 1 + rows.is_token.sum(1)
    is_last = torch.zeros_like(rows.is_text).scatter_(1, last[:, None], True)
    return model.score(packing.states_at(model, rows.token_ids, rows.is_text, is_last)).squeeze(-1).float()


class _Logprobs(torch.autograd.Function):
    """log p of the given tokens, and the entropy of p = softmax(logits / temperature), without copying the logits.

    The logits are overwritten with p, which is all that the gradient needs: d log p_t / d logit_v is
    (1[v = t] - p_v) / temperature. The operation that computes the logits must not need them for its own gradient; a
    linear layer or a scale does not. The token `never` has probability 0; it may lie outside the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, temperature: float, never: int) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.temperature = logits.dtype, temperature
        logits = logits.detach().float()
        logprobs, entropies = logits.new_empty(len(logits)), logits.new_empty(len(logits))
        at_once = max(1, (_LOGITS_IN_CACHE if logits.device.type == "cpu" else _LOGITS_ON_GPU) // logits.shape[1])
        for first in range(0, len(logits), at_once):
            some = slice(first, first + at_once)
            part = logits[some]
            if temperature != 1:
                part.div_(temperature)
            part[:, never : never + 1] = _NEVER
            part.sub_(part.logsumexp(1, keepdim=True))
            logprobs[some] = part.gather(1, token_ids[some, None])[:, 0]
            p = part.exp()
            entropies[some] = -part.mul_(p).sum(1)
            part.copy_(p)
        ctx.save_for_backward(logits, token_ids)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(  # type: ignore[override]  # torch's stub takes any arguments
        ctx: Any, grad_logprobs: Tensor, _grad_entropies: Tensor
    ) -> tuple[Tensor, None, None, None]:
        p, token_ids = ctx.saved_tensors
        scaled = (grad_logprobs / ctx.temperature)[:, None]
        gradient = p.mul_(-scaled).scatter_add_(1, token_ids[:, None], scaled)
        return gradient.to(ctx.dtype), None, None, None
