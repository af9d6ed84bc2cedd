"""Turn one batch of rollouts into optimizer steps: rewards and advantages, then PPO's epochs over mini-batches."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from trl.experimental.ppo import PPOConfig

from gpt2_rlhf.models import threads
from gpt2_rlhf.ppo_trainer import forward, losses
from gpt2_rlhf.ppo_trainer.forward import Rows
from gpt2_rlhf.ppo_trainer.metrics import Means
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from gpt2_rlhf.ppo_trainer.rollouts import Rollout


@dataclass(frozen=True)
class Batch:
    """Rollouts with the targets of their update; all tensors have shape (rows, answer)."""

    rows: Rows
    logprobs: Tensor  # of the policy that sampled
    values: Tensor  # of the critic before the update, 0 beyond rows.has_value
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, which: Tensor) -> "Batch":
        return Batch(*(getattr(self, field.name)[which] for field in fields(self)))


def prepare(
    rollout: Rollout, accelerator: Accelerator, args: PPOConfig, kl_coef: float, shaping: Shaping, means: Means
) -> Batch:
    """Compute rewards, advantages and returns of the rollouts, and add the rollouts' metrics to `means`."""
    total: Any = partial(accelerator.reduce, reduction="sum")
    is_token, has_value = rollout.rows.is_token, rollout.rows.has_value
    values = rollout.values.masked_fill(~has_value, 0)
    scores = shaping(rollout.scores)
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * ~rollout.ended
    kl = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
    rewards = losses.token_rewards(kl, scores, is_token, kl_coef)
    if args.whiten_rewards:
        rewards = losses.whiten(rewards, has_value, total, keeps_mean=True)
    advantages = losses.generalised_advantages(rewards, values, args.gamma, args.lam)
    whitened = losses.whiten(advantages, is_token, total)
    returns = advantages + values

    non_score_reward = -kl_coef * kl.sum(1)
    means.add("objective/kl", kl.sum(1))
    for name in ("k1", "k3"):
        estimate = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, name)
        means.add(f"objective/kl_{name}", estimate.sum(1))
    means.add("objective/entropy", -rollout.logprobs.sum(1))
    means.add("objective/non_score_reward", non_score_reward)
    means.add("objective/rlhf_reward", non_score_reward + scores)
    means.add("objective/scores", scores)
    means.add("objective/unshaped_scores", rollout.scores)
    means.add("answer/tokens", is_token.sum(1))
    means.add("answer/eos_rate", rollout.ended)
    means.add("text_tokens", rollout.rows.is_text.sum(1))
    means.add("error", returns - values, has_value)
    means.add("return", returns, has_value)
    return Batch(rollout.rows, rollout.logprobs, values, whitened, returns)


def learn(
    batch: Batch,
    model: torch.nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    args: PPOConfig,
    order: np.random.Generator,
    means: Means,
) -> list[float]:
    """Take the optimizer steps on one batch; return the gradient's norm at each, before clipping.

    The loss of a mini-batch is a mean over its tokens. Neither that mean nor which rows are in the mini-batch depends
    on how many processes share it, or on how it is split into microbatches.

    model: policy and value model (forward.PolicyAndValue), or DDP around it. order: shuffles the rows in each epoch,
        in all processes alike.
    """
    batch = _of_all_processes(batch, accelerator)
    rows, device = len(batch.values), batch.values.device
    shuffled = np.concatenate([order.permutation(rows) for _ in range(args.num_ppo_epochs)])
    minibatches = torch.from_numpy(shuffled).to(device).split(rows // args.num_mini_batches)
    per_row = torch.stack([batch.rows.is_token.sum(1), batch.rows.has_value.sum(1)], 1)
    parts = accelerator.unwrap_model(model)
    with_logits = forward.rows_at_once(parts.policy, args.response_length)
    norms = []
    for minibatch in minibatches:
        token_count, value_count = per_row[minibatch].sum(0)
        share = minibatch.chunk(accelerator.num_processes)[accelerator.process_index]
        microbatches = share.split(min(args.per_device_train_batch_size, with_logits))
        for microbatch in microbatches:
            # DDP averages the gradients of all processes, at the last microbatch of a step only; FSDP would keep them
            # whole until then
            is_averaged = microbatch is microbatches[-1] or accelerator.is_fsdp2
            with nullcontext() if is_averaged else accelerator.no_sync(model):
                policy_loss, value_loss = _summed_losses(model, batch[microbatch], accelerator, args, means)
                policy_loss = policy_loss / token_count * accelerator.num_processes
                value_loss = args.vf_coef * value_loss / value_count * accelerator.num_processes
                if parts.in_threads:
                    backward = accelerator.backward
                    threads.both(partial(backward, policy_loss), partial(backward, value_loss), in_threads=True)
                else:
                    accelerator.backward(policy_loss + value_loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
        assert norm is not None
        norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def _of_all_processes(batch: Batch, accelerator: Accelerator) -> Batch:
    """Return the rows of all processes, in the order in which one process alone would have them."""
    if accelerator.num_processes == 1:
        return batch

    def gathered(values: Tensor, padding: int = 0, on_left: bool = False) -> Any:
        return accelerator.gather(accelerator.pad_across_processes(values, 1, padding, on_left))

    rows = batch.rows
    prompts = gathered(rows.token_ids[:, : rows.prompt_tokens], rows.pad_token_id, on_left=True)
    token_ids = torch.cat([prompts, gathered(rows.answers, rows.pad_token_id)], 1)
    rows = Rows(token_ids, prompts.shape[1], rows.pad_token_id)
    return Batch(rows, *map(gathered, (batch.logprobs, batch.values, batch.advantages, batch.returns)))


def _summed_losses(
    model: torch.nn.Module, batch: Batch, accelerator: Accelerator, args: PPOConfig, means: Means
) -> tuple[Tensor, Tensor]:
    """Return a microbatch's sums of policy and of value losses, and add its metrics to `means`."""
    is_token, has_value = batch.rows.is_token, batch.rows.has_value
    with accelerator.autocast():  # Accelerate puts it around the forward pass of DDP, and not of FSDP
        logprobs, entropies, values = model(batch.rows, args.temperature)
    policy_losses, ratio, policy_clipped = losses.policy_losses(
        logprobs, batch.logprobs, batch.advantages, args.cliprange
    )
    value_losses, value_clipped = losses.value_losses(values, batch.values, batch.returns, args.cliprange_value)
    means.add("policy/approxkl_avg", 0.5 * (logprobs - batch.logprobs).detach().square(), is_token)
    means.add("policy/clipfrac_avg", policy_clipped, is_token)
    means.add("policy/entropy_avg", entropies, is_token)
    means.add("loss/policy_avg", policy_losses, is_token)
    means.add("loss/value_avg", value_losses, has_value)
    means.add("val/clipfrac_avg", value_clipped, has_value)
    means.add("val/ratio", ratio, is_token)
    return (policy_losses * is_token).sum(), (value_losses * has_value).sum()
