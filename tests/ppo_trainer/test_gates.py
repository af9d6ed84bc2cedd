from typing import Any

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import calibration
from gpt2_rlhf.evidence.intervals import wilson
from gpt2_rlhf.ppo_trainer import gates


def report(right: int, longer_wins: float, pairs: int = 500) -> dict[str, Any]:
    return {"accuracy": wilson(right, pairs), "baselines": {"longer_answer_wins": {"mean": longer_wins}}}


def test_a_reward_model_no_better_than_chance_is_a_fault():
    # 262 of 500 is 52.4 %, but its interval reaches down to 48.0 %
    fault = calibration.reward_model_fault(report(262, longer_wins=0.5))
    assert fault is not None
    assert fault.startswith("reward: the reward model is right on 52.4 % [48.0, 56.7] of held-out pairs")
    assert "chance is 50 %" in fault


@pytest.mark.parametrize(("longer_wins", "rule"), [(0.7, "longer"), (0.3, "shorter")])
def test_a_reward_model_no_better_than_length_is_a_fault(longer_wins, rule):
    fault = calibration.reward_model_fault(report(350, longer_wins))
    assert fault is not None
    assert f"taking the {rule} answer is right on 70.0 %" in fault


def test_a_reward_model_above_its_baselines_passes():
    assert calibration.reward_model_fault(report(375, longer_wins=0.7)) is None


def test_an_sft_model_that_never_ends_its_answers_is_a_fault_and_one_that_seldom_does_is_not():
    # Wilson: 0 of 64 reaches up to 5.7 %, 2 of 64 to 10.7 %
    fault = gates.sft_fault(0, 0, 64)
    assert fault is not None
    assert fault.startswith("sft: 0 of 64 answers")
    assert gates.sft_fault(2, 0, 64) is None
    assert gates.sft_fault(0, 0, 4) is None  # too few to say


def test_an_sft_model_whose_answers_are_nearly_all_empty_is_a_fault_and_one_of_short_answers_is_not():
    # Wilson: 61 of 63 is at least 89 %, 52 of 64 (81 %) at least 70 %
    fault = gates.sft_fault(62, 61, 63)
    assert fault is not None
    assert fault.startswith("sft: 61 of 63 answers of the SFT model are empty")
    assert gates.sft_fault(64, 52, 64) is None
    assert gates.sft_fault(4, 4, 4) is None  # too few to say


def test_a_reference_that_differs_from_the_policy_is_a_fault():
    assert gates.reference_fault(1e-4) is None
    fault = gates.reference_fault(0.3)
    assert fault is not None
    assert "0.3 nats before the first update" in fault


def test_the_first_fault_is_raised_and_force_ignores_all(capsys):
    with pytest.raises(UserError, match="one; or go on with force=true"):
        gates.pass_or_stop([None, "one", "two"], force=False)
    assert gates.pass_or_stop([None, "one", "two"], force=True) == ["one", "two"]
    assert capsys.readouterr().out == "  forced: one\n  forced: two\n"
    assert gates.pass_or_stop([None], force=False) == []
