"""Turn TRL's PPO passes over prompt and answer into passes over what is used of them: the same numbers, sooner.

TRL 1.12 pads every row to the longest prompt and the longest answer of the rollout, computes logits over the
vocabulary for each token of the prompts and throws them away, and keeps all layers' hidden states and a key-value
cache that nobody reads. Within `fast()` the functions that its trainer looks up by name do none of that: the rows of
a microbatch go through the model as one sequence without padding, in which each row attends to itself alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.experimental.ppo import ppo_trainer as stock
from trl.experimental.utils import first_true_indices

from gpt2_rlhf.ppo_rollout import NEVER, language_model, stock_functions_replaced
from gpt2_rlhf.rows_apart import rows_apart


@contextmanager
def fast() -> Iterator[None]:
    """Within the block, build TRL's PPO trainer and train it; both need it, and answers are sampled as outside it."""
    prompt_tokens = 0
    sample = vars(stock)["batch_generation"]

    def sample_and_note(policy: nn.Module, prompts: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        nonlocal prompt_tokens
        prompt_tokens = prompts.shape[1]
        return sample(policy, prompts, *settings)

    def forward(model: nn.Module, token_ids: Tensor, pad_token_id: int) -> Any:
        if isinstance(model, PreTrainedModel | PeftModel):
            states = answer_states(model, token_ids, prompt_tokens, pad_token_id)
            logits = answer_logits(model, states, token_ids[:, prompt_tokens:] != pad_token_id)
            return SimpleNamespace(logits=AnswerPart(logits, prompt_tokens))
        logits, values = model(token_ids=token_ids, prompt_tokens=prompt_tokens, pad_token_id=pad_token_id)
        return SimpleNamespace(logits=AnswerPart(logits, prompt_tokens)), AnswerPart(values, prompt_tokens)

    with stock_functions_replaced(
        batch_generation=sample_and_note, forward=forward, get_reward=get_reward, PolicyAndValueWrapper=PolicyAndValue
    ):
        yield


@dataclass(frozen=True)
class AnswerPart:
    """Stands for a tensor over prompt and answer, of which `values` are the positions that train() then takes.

    Shapes: `values` is (rows, answer, ...), one position ahead of the answer's tokens, which it predicts or values.
    """

    values: Tensor
    prompt_tokens: int

    def __getitem__(self, positions: tuple[slice, slice]) -> Tensor:
        assert positions == (slice(None), slice(self.prompt_tokens - 1, -1)), positions
        return self.values


class PolicyAndValue(stock.PolicyAndValueWrapper):
    """TRL's policy and value model as one module, so that DDP sees one pass, computed over the answers."""

    def forward(self, **batch: Any) -> tuple[Tensor, Tensor]:
        """Logits (rows, answer, vocabulary) and values (rows, answer, 1) from `answer_states`' arguments."""
        is_token = batch["token_ids"][:, batch["prompt_tokens"] :] != batch["pad_token_id"]
        logits = answer_logits(self.policy, answer_states(self.policy, **batch), is_token)
        return logits, self.value_model.score(answer_states(self.value_model, **batch)[:, :-1])


def answer_states(model: nn.Module, token_ids: Tensor, prompt_tokens: int, pad_token_id: int) -> Tensor:
    """Last hidden states (rows, answer + 1, width): before each token of the answers, and after the last; else 0.

    `token_ids` are rows of left padding and prompt, `prompt_tokens` together, then answer and right padding. The rows
    go through the model as one without their padding, and each attends to itself alone.
    """
    is_text = token_ids != pad_token_id
    positions = is_text.cumsum(1) - 1
    backbone = language_model(model).base_model
    with rows_apart(backbone):
        hidden = backbone(
            input_ids=token_ids[is_text][None],
            position_ids=positions[is_text][None],
            attention_mask=torch.ones_like(token_ids[is_text][None]),  # none makes transformers warn of padding
            use_cache=False,
            return_dict=True,
            row_tokens=is_text.sum(1).tolist(),
        ).last_hidden_state[0]
    wanted = is_text.clone()
    wanted[:, : prompt_tokens - 1] = False
    states = hidden.new_zeros(len(token_ids), token_ids.shape[1] - prompt_tokens + 1, hidden.shape[-1])
    states[wanted[:, prompt_tokens - 1 :]] = hidden[wanted[is_text]]
    return states


def answer_logits(model: nn.Module, states: Tensor, is_token: Tensor) -> Tensor:
    """Logits (rows, answer, vocabulary) that predict the answers' tokens from `answer_states`.

    For the padding they are certain of token 0: train() adds up the entropy there too.
    """
    head = language_model(model).get_output_embeddings()
    if is_token.all():
        return head(states[:, :-1])
    at_tokens = head(states[:, :-1][is_token])
    logits = at_tokens.new_full((*is_token.shape, at_tokens.shape[-1]), NEVER)
    logits[..., 0] = 0
    logits[is_token] = at_tokens
    return logits


def get_reward(
    model: nn.Module, token_ids: Tensor, pad_token_id: int, context_length: int
) -> tuple[AnswerPart, Tensor, Tensor]:
    """The values over the answer, the score at its last token, and that token's position, as TRL's function gives."""
    states = answer_states(model, token_ids, context_length, pad_token_id)
    answer_tokens = first_true_indices(token_ids[:, context_length:] == pad_token_id)
    score = language_model(model).score
    rows = torch.arange(len(token_ids), device=token_ids.device)
    return (
        AnswerPart(score(states[:, :-1]), context_length),
        score(states[rows, answer_tokens]).squeeze(-1),
        answer_tokens - 1 + context_length,
    )
