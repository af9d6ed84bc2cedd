import math

import pytest
import torch
from trl.experimental.ppo.ppo_trainer import masked_whiten

from gpt2_rlhf.config.settings import PpoKl
from gpt2_rlhf.ppo_trainer import losses

# two answers: three tokens, and one token with room after it
IS_TOKEN = torch.tensor([[True, True, True], [True, False, False]])


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


def test_advantages_of_two_tokens_by_hand():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])
    advantages = losses.generalised_advantages(rewards, values, gamma=0.5, lam=0.5)
    # deltas: 1 + 0.5 x 0.25 - 0.5 = 0.625 and 2 - 0.25 = 1.75; advantages 0.625 + 0.25 x 1.75 = 1.0625 and 1.75
    torch.testing.assert_close(advantages, torch.tensor([[1.0625, 1.75]]))


@pytest.mark.parametrize("keeps_mean", [False, True])
def test_whitening_ignores_padding_and_equals_that_of_stock_in_one_process(keeps_mean):
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 0.0]])
    found = losses.whiten(values, IS_TOKEN, lambda here: here, keeps_mean=keeps_mean)
    expected = masked_whiten(values, IS_TOKEN, shift_mean=not keeps_mean)
    torch.testing.assert_close(found[IS_TOKEN], expected[IS_TOKEN])
    assert found[~IS_TOKEN].tolist() == [0, 0]


def test_whitening_is_over_the_values_of_all_processes():
    everywhere = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 0.0]])
    expected = losses.whiten(everywhere, IS_TOKEN, lambda here: here)
    # the sums that the second process adds: its count and sum of values, then its squared deviations from 11 / 4
    from_second = iter([torch.tensor([1.0, 5.0]), torch.tensor((5 - 11 / 4) ** 2)])
    found = losses.whiten(everywhere[:1], IS_TOKEN[:1], lambda here: here + next(from_second))
    torch.testing.assert_close(found, expected[:1])


@pytest.mark.parametrize(
    ("kl_nats", "expected"),
    [(6.6, 0.1 * (1 + 0.1 * 0.5)), (60.0, 0.1 * (1 + 0.2 * 0.5)), (6.0, 0.1), (0.0, 0.1 * (1 - 0.2 * 0.5))],
    ids=["above by a tenth", "far above", "at it", "far below"],
)
def test_the_kl_coefficient_moves_towards_the_target(kl_nats, expected):
    found = losses.next_kl_coef(0.1, kl_nats, episodes=50, kl=PpoKl(target_nats=6.0, horizon_episodes=100))
    assert found == pytest.approx(expected)


def test_the_policy_loss_clips_gains_and_not_losses():
    ratio = torch.tensor([[1.5, 1.5, 0.5]])
    advantages = torch.tensor([[1.0, -1.0, 1.0]])
    by_token, found, clipped = losses.policy_losses(ratio.log(), torch.zeros(1, 3), advantages, cliprange=0.2)
    torch.testing.assert_close(found, ratio)
    # max(-1.5, -1.2) = -1.2; max(1.5, 1.2) = 1.5; max(-0.5, -0.8) = -0.5
    torch.testing.assert_close(by_token, torch.tensor([[-1.2, 1.5, -0.5]]))
    assert clipped.tolist() == [[True, False, False]]


def test_the_value_loss_takes_the_larger_error():
    values, old_values, returns = torch.tensor([[2.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[2.0, 1.0]])
    by_token, clipped = losses.value_losses(values, old_values, returns, cliprange=0.2)
    # clipped to 0.2 and 0.1: errors max(0, 1.8^2) and 0.9^2
    torch.testing.assert_close(by_token, torch.tensor([[0.5 * 1.8**2, 0.5 * 0.9**2]]))
    assert clipped.tolist() == [[True, False]]
