import dataclasses
import types
import typing
from typing import Any

import pytest
from transformers import SchedulerType
from trl.experimental.ppo import PPOConfig
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.sft_config import SFTConfig

from gpt2_rlhf.config import trl_fields

CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig, "rloo": RLOOConfig, "dpo": DPOConfig}


@pytest.mark.parametrize("stage", CONFIGS)
def test_the_fields_read_from_source_are_those_of_the_imported_dataclass(stage: str) -> None:
    assert set(trl_fields.fields(stage)) == {f.name for f in dataclasses.fields(CONFIGS[stage])}


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_scalar_field_has_the_type_of_the_imported_dataclass(stage: str) -> None:
    hints = typing.get_type_hints(CONFIGS[stage])
    scalars = {name: kind for name, kind in hints.items() if _scalar(kind) and not name.startswith("_")}
    read = {name: field.type for name, field in trl_fields.fields(stage).items() if name in scalars}
    assert len(scalars) > 50  # of more than a hundred: the comparison is not empty
    assert read == scalars


def test_an_enum_field_allows_the_values_of_the_enum() -> None:
    choices = trl_fields.fields("sft")["lr_scheduler_type"].choices
    assert choices == tuple(kind.value for kind in SchedulerType)


def test_a_literal_field_allows_the_values_of_the_literal() -> None:
    field = trl_fields.fields("ppo")["kl_estimator"]
    assert (field.type, field.choices) == (str, ("k1", "k3"))


def test_an_optional_literal_may_be_null() -> None:
    field = trl_fields.fields("ppo")["stop_token"]
    assert (field.type, field.choices) == (str | None, ("eos",))


def test_the_losses_of_sft_are_those_that_its_trainer_names_when_it_refuses_another() -> None:
    found = trl_fields.loss_types("sft")
    assert set(found) == {"nll", "dft", "chunked_nll"}
    assert {"sigmoid", "ipo", "sft"} < set(trl_fields.loss_types("dpo"))


def _scalar(kind: Any) -> bool:
    members = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return set(members) <= {bool, int, float, str, type(None)} and len(set(members) - {type(None)}) == 1
