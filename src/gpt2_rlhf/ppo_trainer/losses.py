"""PPO's arithmetic on one batch of rollouts, as in TRL 1.12: rewards, advantages, the two losses.

All shapes are (rows, answer), with one number per token of the answers; masks are true at real tokens. If an answer is
shorter than `response_length`, the position after its last token also has a value and gets the score (as in
lm-human-preferences, from which TRL ported it): `has_value` of forward.Rows marks the tokens and that position.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gpt2_rlhf.config.settings import PpoKl


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """Estimate KL(policy || reference) at each token sampled from the policy, in nats.

    k1 = log p - log q is unbiased and may be negative for a token; k3 = q/p - 1 - log(q/p) is unbiased, never negative
    (http://joschu.net/blog/kl-approx.html). Both are 0 where both inputs are.
    """
    log_ratio = ref_logprobs - logprobs
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


def token_rewards(kl: Tensor, scores: Tensor, is_token: Tensor, kl_coef: float) -> Tensor:
    """Return -kl_coef x KL at each token, plus each row's score after its last token (at it if there is no room)."""
    rewards = -kl_coef * kl
    answer_tokens = is_token.sum(1)
    place = answer_tokens.clamp(max=is_token.shape[1] - 1)
    rewards[torch.arange(len(place), device=place.device), place] += scores
    return rewards


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor], *, keeps_mean: bool = False) -> Tensor:
    """Return values with variance 1 and, unless `keeps_mean`, mean 0 over the mask in all processes; 0 elsewhere.

    `total` sums a tensor over the processes. In one process this is TRL's masked_whiten, with its unbiased variance.
    """
    count, of_values = total(torch.stack([mask.sum(), (values * mask).sum()]))
    mean = of_values / count
    variance = total(((values - mean).square() * mask).sum()) / (count - 1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened + mean if keeps_mean else whitened).masked_fill(~mask, 0)


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantages (Schulman et al. 2016, arXiv:1506.02438); the value targets are these + `values`.

    `values` must be 0 beyond `has_value`.
    """
    advantages = torch.zeros_like(values)
    following, next_values = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        following = rewards[:, t] + gamma * next_values - values[:, t] + gamma * lam * following
        next_values = values[:, t]
        advantages[:, t] = following
    return advantages


def policy_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each token's clipped policy loss (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

    Also return its probability ratio new/old, and whether the clipped term was the larger loss.
    """
    ratio = (logprobs - old_logprobs).exp()
    losses = -advantages * ratio
    clipped_losses = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.max(losses, clipped_losses), ratio, clipped_losses > losses


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Return half of each squared error to the returns, with clipping, and where the clipped error was the larger.

    As in TRL and lm-human-preferences, a token's error is the larger of that of the value and of the value clipped to
    `cliprange` around the old one.
    """
    clipped = values.clamp(old_values - cliprange, old_values + cliprange)
    errors, clipped_errors = (values - returns).square(), (clipped - returns).square()
    return 0.5 * torch.max(errors, clipped_errors), clipped_errors > errors


def next_kl_coef(kl_coef: float, kl_nats: float, episodes: int, kl: PpoKl) -> float:
    """Return the KL coefficient after `episodes` more (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    It rises while the mean KL of an answer is above the target and falls while it is below, by at most a share of
    0.2 x episodes/horizon. Without a target it is fixed.
    """
    if kl.target_nats is None:
        return kl_coef
    error = min(max(kl_nats / kl.target_nats - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / kl.horizon_episodes)
