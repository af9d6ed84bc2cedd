from gpt2_rlhf.config import trl_fields
from gpt2_rlhf.config.trl_arguments import PPO_USES, REFUSED

FIELDS = {stage: set(trl_fields.fields(stage)) for stage in trl_fields.STAGES}


def test_every_refused_argument_is_one_that_trl_has() -> None:
    assert set(REFUSED) <= set().union(*FIELDS.values())


def test_every_argument_ppo_uses_is_one_that_ppo_config_has_and_a_user_may_set() -> None:
    assert FIELDS["ppo"] >= PPO_USES
    assert not PPO_USES & set(REFUSED)
