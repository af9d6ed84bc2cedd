"""Turn TRL's PPO passes over prompt and answer into passes over what is used of them: the same numbers, sooner.

TRL 1.12 computes logits over the vocabulary for every token of the prompt and throws them away, keeps all layers'
hidden states and a key-value cache that nobody reads, and pads each microbatch to the longest prompt of the whole
rollout. Within `fast()` the functions that its trainer looks up by name do none of that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from trl.experimental.ppo import ppo_trainer as stock
from trl.experimental.utils import first_true_indices

from gpt2_rlhf.ppo_rollout import stock_functions_replaced


@contextmanager
def fast() -> Iterator[None]:
    """Within the block, build TRL's PPO trainer and train it; both need it, and answers are sampled as outside it."""
    prompt_tokens = 0
    sample = vars(stock)["batch_generation"]

    def sample_and_note(policy: torch.nn.Module, prompts: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        nonlocal prompt_tokens
        prompt_tokens = prompts.shape[1]
        return sample(policy, prompts, *settings)

    def forward(model: torch.nn.Module, token_ids: Tensor, pad_token_id: int) -> Any:
        # without the last token: nothing is predicted from it
        output = model(
            **_inputs(token_ids[:, _first_text(token_ids, pad_token_id) : -1], pad_token_id),
            logits_to_keep=token_ids.shape[1] - prompt_tokens,
        )
        if isinstance(output, tuple):
            return _answers_logits(output[0], prompt_tokens), AnswerPart(output[1], prompt_tokens)
        return _answers_logits(output, prompt_tokens)

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
    """TRL's policy and value model as one module, computed over the last `logits_to_keep` positions."""

    def forward(self, **inputs: Any) -> tuple[CausalLMOutputWithPast, Tensor]:
        """The policy's output, and the values (rows, logits_to_keep, 1)."""
        answer_tokens = inputs.pop("logits_to_keep")
        hidden = self.critic_backbone(**inputs).last_hidden_state
        values = self.value_model.score(hidden[:, -answer_tokens:])
        return self.policy(**inputs, logits_to_keep=answer_tokens), values


def get_reward(
    model: torch.nn.Module, token_ids: Tensor, pad_token_id: int, context_length: int
) -> tuple[AnswerPart, Tensor, Tensor]:
    """The values over the answer, the score at its last token, and that token's position, as TRL's function gives."""
    first = _first_text(token_ids, pad_token_id)
    backbone = getattr(model, model.base_model_prefix)  # type: ignore[arg-type]
    hidden = backbone(**_inputs(token_ids[:, first:], pad_token_id)).last_hidden_state
    last = first_true_indices(token_ids[:, context_length:] == pad_token_id) - 1 + context_length
    rows = torch.arange(len(token_ids), device=token_ids.device)
    values = model.score(hidden[:, context_length - 1 - first : -1])  # type: ignore[operator]
    scores = model.score(hidden[rows, last - first]).squeeze(-1)  # type: ignore[operator]
    return AnswerPart(values, context_length), scores, last


def _answers_logits(output: CausalLMOutputWithPast, prompt_tokens: int) -> SimpleNamespace:
    assert output.logits is not None
    return SimpleNamespace(logits=AnswerPart(output.logits, prompt_tokens))


def _first_text(token_ids: Tensor, pad_token_id: int) -> int:
    """The first column that is not padding in every row."""
    return int((token_ids != pad_token_id).any(0).int().argmax())


def _inputs(token_ids: Tensor, pad_token_id: int) -> dict[str, Any]:
    is_text = token_ids != pad_token_id
    return {
        "input_ids": token_ids.masked_fill(~is_text, 0),
        "attention_mask": is_text,
        "position_ids": is_text.cumsum(1) - is_text.long(),
        "return_dict": True,
        "use_cache": False,
    }
