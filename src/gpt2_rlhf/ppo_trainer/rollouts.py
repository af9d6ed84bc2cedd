"""Turn prompts into rollouts: answers sampled from the policy, and what the models say of them.

TRL 1.12 samples under whatever the policy's own generation_config says (a repetition penalty there makes the stored
log-probabilities those of another distribution), may sample the padding token, which it then reads as the end, and
keeps the logits of all rollouts alive through the update. Here plain sampling at PPO's temperature is all there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gpt2_rlhf.models.sampling import sample_ids
from gpt2_rlhf.ppo_trainer.forward import Rows


@dataclass(frozen=True)
class Rollout:
    """One process's answers with what was computed on them before the update; all but `rows` and `scores` are 0 at
    padding and have shape (rows, answer), in nats where they are log-probabilities.
    """

    rows: Rows
    ended: Tensor  # (rows,): EOS was reached
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor  # (rows,), as the reward model or function gave them


def sample(
    policy: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    draws: np.ndarray,
    temperature: float,
    eos_token_id: int,
    pad_token_id: int,
    rows_per_call: int,
) -> tuple[Rows, Tensor]:
    """Prompts with answers that end with EOS or have `draws.shape[1]` tokens, and the answers' log-probabilities.

    Shapes: `draws` is (prompts, most new tokens), uniform in [0, 1); log-probabilities (rows, answer), 0 at padding.
    """
    answers, logprobs = sample_ids(
        policy,
        prompt_ids,
        torch.from_numpy(draws),
        temperature=temperature,
        eos_token_id=eos_token_id,
        never_token_id=pad_token_id,
        batch_size=rows_per_call,
    )
    device = next(policy.parameters()).device
    prompt_tokens, answer_tokens = max(map(len, prompt_ids)), max(map(len, answers))
    padding = [pad_token_id]
    token_ids = [
        padding * (prompt_tokens - len(prompt)) + [*prompt, *answer] + padding * (answer_tokens - len(answer))
        for prompt, answer in zip(prompt_ids, answers, strict=True)
    ]
    padded = [[*row, *[0.0] * (answer_tokens - len(row))] for row in logprobs]
    return (
        Rows(torch.tensor(token_ids, device=device), prompt_tokens, pad_token_id),
        torch.tensor(padded, device=device, dtype=torch.float32),
    )
