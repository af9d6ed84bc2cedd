"""Turn prompts into rollouts: answers sampled from the policy, with log-probabilities, values and scores.

Sampling is plain, at PPO's temperature; the package's docstring says what TRL does (4, 6 and 9 there).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from trl.experimental.ppo import PPOConfig

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import threads
from gpt2_rlhf.models.sampling import sample_ids
from gpt2_rlhf.ppo_trainer import forward, losses
from gpt2_rlhf.ppo_trainer.forward import Rows
from gpt2_rlhf.ppo_trainer.metrics import Clock

T = TypeVar("T")

MAX_MEAN_GAP_NATS = 2e-2  # over tokens, in a lower precision, which rounds each logit
_MAX_GAP_NATS = 1e-3  # of any token, in float32


class Diverged(UserError):
    """The scores of the rollouts are not finite."""


@dataclass(frozen=True)
class Models:
    """What rollouts are made with."""

    policy: nn.Module
    reference: nn.Module | None  # None: the policy without its adapter
    value_model: nn.Module
    score: Callable[[Rows], Tensor]  # scores of shape (rows,)
    eos_token_id: int
    pad_token_id: int
    cache: str | None = None  # one of sampling.CACHES
    in_threads: bool = False  # score with the reference and with the other models at the same time (models.threads)


@dataclass(frozen=True)
class Rollout:
    """One process's answers with what was computed on them before the update.

    `logprobs` and `ref_logprobs` (nats) and `values` have shape (rows, answer); the log-probabilities are 0 at padding.
    """

    rows: Rows
    ended: Tensor  # (rows,): EOS was reached
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor  # (rows,), as the reward model or function gave them


def prompt_batch(prompts: Sequence[T], update: int, batch_size: int, seed: int) -> list[T]:
    """Return the prompts of one update, counted from 0; they depend on seed and update only, so PPO can resume at any.

    Each epoch shuffles all prompts again and leaves out those that do not fill a batch, which are others in each epoch.
    TRL's PPO shuffles with the global random generator, which rollouts use too.
    """
    epoch, place = divmod(update, len(prompts) // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(len(prompts))
    return [prompts[int(row)] for row in order[place * batch_size : (place + 1) * batch_size]]


@torch.no_grad()
def roll_out(
    models: Models,
    prompt_ids: Sequence[Sequence[int]],
    draws: np.ndarray,
    args: PPOConfig,
    accelerator: Accelerator,
    clock: Clock,
) -> Rollout:
    """Sample an answer to each prompt and compute what the update needs of it; `draws` is that of `sample`."""
    with clock.phase("rollout"), accelerator.autocast():
        rows, logprobs = sample(models, prompt_ids, draws, args)
    with_logits = forward.rows_at_once(models.policy, args.response_length)

    def in_parts(compute: Callable[[Rows], Tensor], most_rows: int = len(prompt_ids)) -> Tensor:
        at_once = min(args.local_rollout_forward_batch_size, most_rows)
        return torch.cat([compute(rows[start : start + at_once]) for start in range(0, len(prompt_ids), at_once)])

    def logprobs_of(model: nn.Module) -> Tensor:
        return in_parts(lambda part: forward.answer_logprobs(model, part, args.temperature)[0], with_logits)

    def reference_logprobs() -> Tensor:
        if models.reference is not None:
            return logprobs_of(models.reference)
        assert isinstance(models.policy, PeftModel)
        with models.policy.disable_adapter():
            return logprobs_of(models.policy)

    with clock.phase("score"), accelerator.autocast():
        if accelerator.mixed_precision != "no":
            # sampling token by token rounds differently: the ratio would not be 1 before the first step
            logprobs = logprobs_of(models.policy)
        (values, scores), ref_logprobs = threads.both(
            lambda: (in_parts(partial(forward.answer_values, models.value_model)), in_parts(models.score)),
            reference_logprobs,
            models.in_threads,
        )
    ended = (rows.answers == models.eos_token_id).any(1)
    return Rollout(rows, ended, logprobs, ref_logprobs, values, scores)


def check(rollout: Rollout, accelerator: Accelerator, update: int) -> tuple[float, int, int]:
    """Return over all processes the mean k3 KL of an answer, in nats, and how many ended with EOS and how many at once.

    Raises:
        Diverged: a score is not finite; `update` is the number of updates done before.
    """
    k3 = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, "k3").sum(1)
    empty = rollout.ended & (rollout.rows.is_token.sum(1) == 1)
    here = torch.stack([k3.sum(), rollout.ended.sum(), empty.sum(), rollout.scores.isfinite().sum()]).float()
    everywhere = accelerator.reduce(here, "sum")
    assert isinstance(everywhere, Tensor)
    kl_nats, ended, at_once, finite = everywhere.tolist()
    answers = len(rollout.scores) * accelerator.num_processes
    if finite < answers:
        raise Diverged(
            f"ppo: update {update + 1}: {answers - finite:.0f} of {answers} scores are not finite; the reward (or the "
            "policy) has diverged: lower ppo.args.learning_rate, or check the reward model or ppo.reward.function"
        )
    return kl_nats / answers, int(ended), int(at_once)


def sample(
    models: Models, prompt_ids: Sequence[Sequence[int]], draws: np.ndarray, args: PPOConfig
) -> tuple[Rows, Tensor]:
    """Return prompts with answers that end with EOS or have `draws.shape[1]` tokens, and the log-probabilities.

    Shapes: `draws` is (prompts, most new tokens), uniform in [0, 1); log-probabilities (rows, answer), 0 at padding.

    Raises:
        UserError: the model cannot be compiled.
    """
    try:
        answers, logprobs = sample_ids(
            models.policy,
            prompt_ids,
            torch.from_numpy(draws),
            temperature=args.temperature,
            eos_token_id=models.eos_token_id,
            never_token_id=models.pad_token_id,
            batch_size=args.local_rollout_forward_batch_size,
            cache=models.cache,
        )
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            f"ppo.rollout_cache: compiled: torch.compile fails here ({' '.join(str(error).split())[:200]}); set it to "
            "static or null"
        ) from error
    device = next(models.policy.parameters()).device
    # the position after EOS has a value, also in the longest row
    answer_tokens = min(max(map(len, answers)) + 1, draws.shape[1])
    padded = [[*row, *[0.0] * (answer_tokens - len(row))] for row in logprobs]
    return (
        forward.padded(prompt_ids, answers, answer_tokens, models.pad_token_id, device),
        torch.tensor(padded, device=device, dtype=torch.float32),
    )


@torch.no_grad()
def check_packed_pass(models: Models, prompt_ids: Sequence[Sequence[int]], args: PPOConfig) -> None:
    """Compare the sampler's log-probabilities of answers to the longest prompts with those of the update's pass.

    Mixed precision is off here, since its rounding would hide a fault.

    Raises:
        UserError: they differ by more than rounding.
    """
    longest = sorted(prompt_ids, key=len)[-min(4, forward.rows_at_once(models.policy, args.response_length)) :]
    draws = np.random.default_rng(args.seed).random((len(longest), args.response_length))
    rows, sampled = sample(models, longest, draws, args)
    packed, _ = forward.answer_logprobs(models.policy, rows, args.temperature)
    sampled, packed = sampled[rows.is_token], packed[rows.is_token]
    gaps = (packed - sampled).abs()
    family, dtype = forward.language_model(models.policy).config.model_type, next(models.policy.parameters()).dtype
    is_exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    gap, limit = (gaps.max(), _MAX_GAP_NATS) if is_exact else (gaps.mean(), MAX_MEAN_GAP_NATS)
    if not gap <= limit:
        worst = gaps.argmax()
        raise UserError(
            f"ppo: {family}: sampling gives a token the log-probability {sampled[worst]:.4f}, the pass that "
            f"trains it {packed[worst]:.4f}; expected equal up to rounding ({limit:g} nats): PPO would train "
            "on wrong numbers; choose a model of another family (GPT-2 and Llama are tested)"
        )
