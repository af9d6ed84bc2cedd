import dataclasses

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.config import ppo_sizes as sizes
from gpt2_rlhf.config.settings import Ppo

DEMO = compose.load(["experiment=gpt2_hh_500"]).settings.ppo


def ppo(device: int = 8, accumulated: int = 4, parts: int = 2) -> Ppo:
    batch = {
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": accumulated,
        "num_mini_batches": parts,
    }
    return dataclasses.replace(DEMO, args={**DEMO.args, **batch})


def test_enough_prompts_leave_the_sizes_as_set() -> None:
    found = sizes.fit(ppo(), prompts=500, processes=1)
    assert (found.withheld_prompts, found.train_prompts, found.episodes_per_update) == (64, 436, 32)
    assert sizes.change(ppo(), found, 1) is None


def test_the_withheld_prompts_shrink_to_a_quarter_before_the_batch_does() -> None:
    found = sizes.fit(ppo(), prompts=80, processes=1)  # 80 - 64 = 16 would be fewer than 32
    assert (found.withheld_prompts, found.train_prompts, found.episodes_per_update) == (20, 60, 32)
    assert sizes.change(ppo(), found, 1) == "ppo: sizes fitted to 80 prompts: 20 withheld for measuring (64 set)"


def test_few_prompts_take_fewer_accumulated_batches_and_then_smaller_ones() -> None:
    # 34 prompts withhold 8; 26 remain: 8 x 3 = 24 are the most whole batches, and 24 divides into 2 mini-batches
    found = sizes.fit(ppo(), prompts=34, processes=1)
    assert found.batch_arguments == {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 3,
        "num_mini_batches": 2,
    }
    # 7 prompts withhold 1; 6 remain, fewer than one batch of 8
    found = sizes.fit(ppo(), prompts=7, processes=1)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (6, 1)


def test_the_prompts_are_shared_by_the_processes() -> None:
    found = sizes.fit(ppo(), prompts=80, processes=2)  # 60 remain, 30 for each process: 8 x 3 = 24
    assert found.gradient_accumulation_steps == 3
    assert found.episodes_per_update == 48
    expected = "ppo: sizes fitted to 80 prompts: 20 withheld for measuring (64 set), 48 episodes an update (64 set)"
    assert sizes.change(ppo(), found, 2) == expected


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_any_number_of_prompts_fills_its_batch_and_mini_batches(parts: int) -> None:
    for prompts in range(3, 200):
        found = sizes.fit(ppo(device=32, accumulated=2, parts=parts), prompts, processes=1)
        assert 2 <= found.episodes_per_update <= found.train_prompts
        assert found.episodes_per_update % found.num_mini_batches == 0
        assert found.withheld_prompts + found.train_prompts == prompts
