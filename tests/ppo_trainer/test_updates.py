from pathlib import Path

import pytest
import torch

from helpers import ppo_tiny as tiny
from helpers.ppo_two_processes import torchrun

pytestmark = pytest.mark.usefixtures("small_overheads")


@pytest.mark.parametrize("whiten_rewards", [False, True], ids=["", "whitened rewards"])
def test_an_sgd_step_is_the_same_for_any_split_of_the_batch_into_microbatches(tmp_path: Path, whiten_rewards: bool):
    whole, metrics = tiny.gradient_of_one_step(tmp_path, 8, 1, whiten_rewards=whiten_rewards)
    assert 1.5 < metrics["answer/tokens"] < tiny.RESPONSE  # with equal lengths the mean of means would be right too
    for rows, accumulation in ((4, 2), (2, 4), (1, 8)):
        split, split_metrics = tiny.gradient_of_one_step(tmp_path, rows, accumulation, whiten_rewards=whiten_rewards)
        assert (split - whole).norm() < 1e-6 * whole.norm()
        assert split_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_an_sgd_step_is_the_same_over_one_and_over_two_processes(tmp_path: Path):
    whole, metrics = tiny.gradient_of_one_step(tmp_path / "one", 8, 1)
    status, ranks = torchrun("steps", tmp_path)
    assert status == 0
    for rows in (4, 2, 1):
        for rank in (0, 1):
            gradient = torch.load(tmp_path / f"gradient-{rows}-{rank}.pt")
            assert (gradient - whole).norm() < 1e-6 * whole.norm()
            assert ranks[rank][str(rows)] == pytest.approx(metrics, rel=1e-5, abs=1e-5)
