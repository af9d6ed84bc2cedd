import dataclasses
from typing import Any

import pytest

from gpt2_rlhf.config import compose, preflight, trl_fields
from gpt2_rlhf.config.errors import UserError


def test_every_setting_with_a_range_exists() -> None:
    values = dataclasses.asdict(compose.load([]).settings)
    for _, _, keys in preflight.RANGES:
        for key in keys:
            node: Any = values
            *parents, name = key.split(".")
            for parent in parents:
                node = node[parent]
            assert name in (trl_fields.fields(parents[0]) if parents[-1:] == ["args"] else node), key


@pytest.mark.parametrize("experiment", compose.groups()["experiment"])
def test_every_experiment_passes(experiment: str) -> None:
    settings = compose.load([f"experiment={experiment}"]).settings
    preflight.check(settings)
    preflight.check_lengths(settings, 512 if settings.model.name == "embedded" else 1024)
    assert settings.data.max_prompt_tokens > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shares.sft=0.9"], "data.shares: .*sum to at most 1"),
        (["data.shares.ppo=0"], "data.shares: .*above 0"),
        (["data.shares.judge=-0.1"], "data.shares: .*judge: 0 or more"),
        (["evaluate.best_of=0"], "evaluate.best_of: 0; expected a number above 0"),
        (["reward.args.learning_rate=0"], "reward.args.learning_rate: 0.0; expected a number above 0"),
        (["ppo.guard.max_kl_nats=0"], "ppo.guard.max_kl_nats: 0.0; expected a number above 0"),
        (["ppo.guard.max_length_ratio=1"], "ppo.guard.max_length_ratio: 1.0; expected a number above 1"),
        (["ppo.guard.min_eos_rate=1.5"], "ppo.guard.min_eos_rate: 1.5; expected a number from 0 to 1"),
        (["ppo.guard.min_distinct_2=-1"], "ppo.guard.min_distinct_2: -1.0; expected a number from 0 to 1"),
        (["seed=4294967296"], "seed: 4294967296; expected a whole number"),
        (["ppo.seeds=[]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.seeds=[1,1]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.seeds=[-1]"], "ppo.seeds: .*; expected different whole numbers"),
        (["ppo.heldout.best_by=luck"], "ppo.heldout.best_by: luck; expected reward, judge, utility or null"),
        (["ppo.heldout.hand_on=first"], "ppo.heldout.hand_on: first; expected last or best"),
        (["ppo.heldout.hand_on=best", "ppo.args.eval_strategy=no"], "ppo.heldout.hand_on: best, but .*nothing is"),
        (["ppo.heldout.best_by=judge", "data.shares.judge=0"], "ppo.heldout.best_by: judge, but no judge is trained"),
        (["ppo.heldout.best_by=utility", "data.utility=null"], "ppo.heldout.best_by: utility, but it is unknown"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused(overrides: list[str], message: str) -> None:
    settings = compose.load(overrides).settings
    with pytest.raises(UserError, match=message) as caught:
        preflight.check(settings)
    assert "\n" not in str(caught.value)
