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
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from trl.experimental.ppo import ppo_trainer as stock
from trl.experimental.utils import first_true_indices

from gpt2_rlhf.ppo_rollout import NEVER, language_model, stock_functions_replaced

_ROWS_APART = "rows_apart"


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
    with _rows_apart(backbone):
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


def use_fused_activations(*models: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel instead of eight, to the same values but for rounding."""
    for model in models:
        for module in model.modules():
            for name, child in module.named_children():
                if isinstance(child, NewGELUActivation):
                    setattr(module, name, GELUTanh())


@contextmanager
def _rows_apart(backbone: PreTrainedModel) -> Iterator[None]:
    """Within the block, the tokens of one input attend within the rows given as `row_tokens`, their lengths."""
    config = backbone.config
    own = config._attn_implementation
    config._attn_implementation = _ROWS_APART
    try:
        yield
    finally:
        config._attn_implementation = own


def _attend_within_rows(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: None,
    *,
    row_tokens: list[int],
    dropout: float,
    scaling: float,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself; shapes (1, heads, tokens, head width), the result with heads third."""
    rows = zip(*(states.split(row_tokens, 2) for states in (query, key, value)), strict=True)
    attended = [
        nn.functional.scaled_dot_product_attention(*row, dropout_p=dropout, is_causal=True, scale=scaling)
        for row in rows
    ]
    return torch.cat(attended, 2).transpose(1, 2), None


# Not in the registry of masks, so that transformers makes none
AttentionInterface.register(_ROWS_APART, _attend_within_rows)
