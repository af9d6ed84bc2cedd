"""Turn one batch of rollouts into optimizer steps: rewards and advantages, then PPO's epochs over mini-batches."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from trl.experimental.ppo import PPOConfig
from trl.experimental.ppo.ppo_trainer import masked_whiten

from gpt2_rlhf.ppo_trainer import losses
from gpt2_rlhf.ppo_trainer.forward import Rows
from gpt2_rlhf.ppo_trainer.metrics import RETURN_MOMENTS, Means
from gpt2_rlhf.ppo_trainer.reward_scores import Shaping
from gpt2_rlhf.ppo_trainer.rollouts import Rollout


@dataclass(frozen=True)
class Batch:
    """Rollouts with the targets of their update; all tensors have shape (rows, answer)."""

    rows: Rows
    is_token: Tensor
    has_value: Tensor  # losses.value_mask
    logprobs: Tensor  # of the policy that sampled
    values: Tensor  # of the critic before the update, 0 beyond has_value
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, which: Tensor) -> "Batch":
        return Batch(
            self.rows[which],
            self.is_token[which],
            self.has_value[which],
            self.logprobs[which],
            self.values[which],
            self.advantages[which],
            self.returns[which],
        )


def prepare(rollout: Rollout, args: PPOConfig, kl_coef: float, shaping: Shaping, means: Means) -> Batch:
    """Compute rewards, advantages and returns of the rollouts, and add the rollouts' metrics to `means`."""
    is_token = rollout.rows.is_token
    has_value = losses.value_mask(is_token)
    values = rollout.values.masked_fill(~has_value, 0)
    scores = shaping(rollout.scores)
    if args.missing_eos_penalty is not None:
        scores = scores - args.missing_eos_penalty * ~rollout.ended
    kl = losses.kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
    rewards = losses.token_rewards(kl, scores, is_token, kl_coef)
    if args.whiten_rewards:
        rewards = masked_whiten(rewards, has_value, shift_mean=False).masked_fill(~has_value, 0)
    advantages, returns = losses.advantages_and_returns(rewards, values, is_token, args.gamma, args.lam)
    batch = Batch(rollout.rows, is_token, has_value, rollout.logprobs, values, advantages, returns)
    _add_rollout_metrics(means, rollout, batch, scores, kl, kl_coef)
    return batch


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

    model: policy and value model (forward.PolicyAndValue), or DDP around it. order: shuffles the rows in each epoch.
    """
    norms = []
    for _ in range(args.num_ppo_epochs):
        for minibatch in np.split(order.permutation(len(batch.is_token)), args.num_mini_batches):
            starts = range(0, len(minibatch), args.per_device_train_batch_size)
            for start in starts:
                rows = torch.from_numpy(minibatch[start : start + args.per_device_train_batch_size])
                microbatch = batch[rows.to(batch.is_token.device)]
                # DDP adds up the gradients of all processes at the last microbatch of a step only
                with nullcontext() if start == starts[-1] else accelerator.no_sync(model):
                    accelerator.backward(_loss(model, microbatch, args, means) / len(starts))
            norm = accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm or math.inf)
            assert norm is not None
            norms.append(float(norm))
            optimizer.step()
            optimizer.zero_grad()
    return norms


def _loss(model: torch.nn.Module, batch: Batch, args: PPOConfig, means: Means) -> Tensor:
    """Return policy loss + vf_coef x value loss of a microbatch, and add its metrics to `means`."""
    is_token, has_value = batch.is_token, batch.has_value
    logprobs, entropies, values = model(batch.rows, args.temperature)
    policy_loss, ratio, policy_clipped = losses.policy_loss(
        logprobs, batch.logprobs, batch.advantages, is_token, args.cliprange
    )
    value_loss, value_clipped = losses.value_loss(values, batch.values, batch.returns, has_value, args.cliprange_value)
    means.add("policy/approxkl_avg", 0.5 * (logprobs - batch.logprobs).detach().square(), is_token)
    means.add("policy/clipfrac_avg", policy_clipped, is_token)
    means.add("policy/entropy_avg", entropies, is_token)
    means.add("loss/policy_avg", policy_loss.expand(len(is_token)), is_token.sum(1))
    means.add("loss/value_avg", value_loss.expand(len(has_value)), has_value.sum(1))
    means.add("val/clipfrac_avg", value_clipped, has_value)
    means.add("val/ratio", ratio, is_token)
    means.add("val/ratio_squared", ratio.square(), is_token)
    return policy_loss + args.vf_coef * value_loss


def _add_rollout_metrics(
    means: Means, rollout: Rollout, batch: Batch, scores: Tensor, kl: Tensor, kl_coef: float
) -> None:
    """Add the metrics of the rollouts, which the steps that follow do not change."""
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
    means.add("answer/tokens", batch.is_token.sum(1))
    means.add("answer/eos_rate", rollout.ended)
    means.add("text_tokens", (rollout.rows.token_ids != rollout.rows.pad_token_id).sum(1))
    errors = batch.returns - batch.values
    moments = (errors, errors**2, batch.returns, batch.returns**2)
    for name, moment in zip(RETURN_MOMENTS, moments, strict=True):
        means.add(name, moment, batch.has_value)
