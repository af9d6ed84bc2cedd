"""PPO's arithmetic on one batch of rollouts, as TRL 1.12 does it: rewards, advantages, the two losses.

Shapes are (rows, answer) throughout, with one number per token of the answers; masks are true at real tokens. Where
an answer is shorter than the longest, the position after its last token also has a value and takes the score (as in
lm-human-preferences, whose tricks TRL ports): `has_value` marks the tokens and that position.
"""

from typing import Literal

import torch
from torch import Tensor
from trl.experimental.ppo.ppo_trainer import masked_mean, masked_whiten


def value_mask(is_token: Tensor) -> Tensor:
    """`has_value` from `is_token`: one position more, where there is room."""
    return torch.cat([torch.ones_like(is_token[:, :1]), is_token[:, :-1]], 1)


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """Estimates of KL(policy || reference) at the tokens sampled from the policy, in nats.

    k1 = log p - log q is unbiased and may be negative for a token; k3 = q/p - 1 - log(q/p) is unbiased, never negative
    (http://joschu.net/blog/kl-approx.html). Both are 0 where both inputs are.
    """
    log_ratio = ref_logprobs - logprobs
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


def token_rewards(kl: Tensor, scores: Tensor, is_token: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef x KL at each token, and each row's score after its last token (at it, where there is no room)."""
    rewards = -kl_coef * kl
    answer_tokens = is_token.sum(1)
    place = answer_tokens.clamp(max=is_token.shape[1] - 1)
    rewards[torch.arange(len(place), device=place.device), place] += scores
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, is_token: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantages (Schulman et al. 2016, arXiv:1506.02438), whitened over the tokens, and value targets.

    The advantages have mean 0 and variance 1 over the tokens of this process's rollouts, and are 0 at padding. The
    returns are raw advantage + value. `values` must be 0 beyond `value_mask`.
    """
    advantages = torch.zeros_like(values)
    following, next_values = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        following = rewards[:, t] + gamma * next_values - values[:, t] + gamma * lam * following
        next_values = values[:, t]
        advantages[:, t] = following
    return masked_whiten(advantages, is_token).masked_fill(~is_token, 0), advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, is_token: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate's mean over tokens (Schulman et al. 2017, arXiv:1707.06347, eq. 7), to be minimised.

    Also each token's probability ratio new/old, and whether the clipped term was the larger loss.
    """
    ratio = (logprobs - old_logprobs).exp()
    losses = -advantages * ratio
    clipped_losses = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return masked_mean(torch.max(losses, clipped_losses), is_token), ratio, clipped_losses > losses


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, has_value: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Half the mean squared error to the returns, pessimistic about moves beyond `cliprange`; and where it was.

    TRL's and lm-human-preferences' clipping: the larger of the errors of the value and of the clipped value.
    """
    clipped = values.clamp(old_values - cliprange, old_values + cliprange)
    errors, clipped_errors = (values - returns).square(), (clipped - returns).square()
    return 0.5 * masked_mean(torch.max(errors, clipped_errors), has_value), clipped_errors > errors


def next_kl_coef(kl_coef: float, kl_nats: float, episodes: int, target_nats: float, horizon_episodes: int) -> float:
    """The adaptive KL coefficient of Ziegler et al. 2019 (arXiv:1909.08593, section 2.2), after `episodes` more.

    It rises while the mean KL of an answer is above the target and falls below it, by at most 0.2 x episodes/horizon.
    """
    error = min(max(kl_nats / target_nats - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon_episodes)
