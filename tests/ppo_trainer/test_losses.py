import math

import pytest
import torch

from gpt2_rlhf.ppo_trainer import losses

# two answers: three tokens, and one token with room after it
IS_TOKEN = torch.tensor([[True, True, True], [True, False, False]])


def test_the_position_after_a_short_answer_has_a_value_too():
    assert losses.value_mask(IS_TOKEN).tolist() == [[True, True, True], [True, True, False]]


def test_k1_is_the_log_ratio_and_k3_is_never_negative():
    logprobs = torch.tensor([[math.log(0.5), math.log(0.2)]])
    ref_logprobs = torch.tensor([[math.log(0.25), math.log(0.4)]])
    k1 = losses.kl_per_token(logprobs, ref_logprobs, "k1")
    k3 = losses.kl_per_token(logprobs, ref_logprobs, "k3")
    torch.testing.assert_close(k1, torch.tensor([[math.log(2), -math.log(2)]]))
    # q/p - 1 - log(q/p) for q/p = 1/2 and 2
    torch.testing.assert_close(k3, torch.tensor([[0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]]))


def test_the_score_is_added_after_the_last_token_or_at_it_if_there_is_no_room():
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    rewards = losses.token_rewards(kl, torch.tensor([10.0, 20.0]), IS_TOKEN, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.5, -1.0, 8.5], [-2.0, 20.0, 0.0]]))


def test_advantages_and_returns_of_two_tokens_by_hand():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    is_token = torch.tensor([[True, True]])
    advantages, returns = losses.advantages_and_returns(rewards, values, is_token, gamma=0.5, lam=0.5)
    # deltas: 1 + 0.5 x 0.25 - 0.5 = 0.625 and 2 - 0.25 = 1.75; advantages 0.625 + 0.25 x 1.75 = 1.0625 and 1.75
    torch.testing.assert_close(returns, torch.tensor([[1.5625, 2.0]]))
    # two numbers, whitened with the unbiased variance, are -1/sqrt(2) and 1/sqrt(2)
    torch.testing.assert_close(advantages, torch.tensor([[-(0.5**0.5), 0.5**0.5]]), rtol=1e-4, atol=1e-4)


def test_whitening_ignores_padding_and_leaves_it_at_zero():
    values = torch.zeros(2, 3)
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 0.0]])
    advantages, _ = losses.advantages_and_returns(rewards, values, IS_TOKEN, gamma=1.0, lam=0.0)
    # lambda 0: the advantage is the reward; tokens 1, 2, 3 and 5, mean 2.75
    assert advantages[IS_TOKEN].mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages[IS_TOKEN].var().item() == pytest.approx(1, abs=1e-4)
    assert advantages[~IS_TOKEN].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kl_nats", "expected"),
    [(6.6, 0.1 * (1 + 0.1 * 0.5)), (60.0, 0.1 * (1 + 0.2 * 0.5)), (6.0, 0.1), (0.0, 0.1 * (1 - 0.2 * 0.5))],
    ids=["above by a tenth", "far above", "at it", "far below"],
)
def test_the_kl_coefficient_moves_towards_the_target(kl_nats, expected):
    found = losses.next_kl_coef(0.1, kl_nats, episodes=50, target_nats=6.0, horizon_episodes=100)
    assert found == pytest.approx(expected)


def test_the_policy_loss_clips_gains_and_not_losses():
    ratio = torch.tensor([[1.5, 1.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0]])
    is_token = torch.tensor([[True, True, True]])
    loss, found, clipped = losses.policy_loss(ratio.log(), torch.zeros(1, 3), advantages, is_token, cliprange=0.2)
    torch.testing.assert_close(found, ratio)
    # max(-1.5, -1.2) = -1.2; max(1.5, 1.2) = 1.5; max(-0.5, -0.8) = -0.5
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5) / 3)
    assert clipped.tolist() == [[True, False, False]]


def test_the_value_loss_takes_the_larger_error_over_tokens_with_a_value():
    values, old_values = torch.tensor([[2.0, 0.1, 99.0]]), torch.zeros(1, 3)
    returns, has_value = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[True, True, False]])
    loss, clipped = losses.value_loss(values, old_values, returns, has_value, cliprange=0.2)
    # clipped to 0.2 and 0.1: errors max(0, 1.8^2) and 0.9^2
    assert loss.item() == pytest.approx(0.5 * (1.8**2 + 0.9**2) / 2)
    assert clipped.tolist()[0][:2] == [True, False]
