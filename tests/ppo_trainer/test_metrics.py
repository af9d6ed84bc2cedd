import math
import time

import pytest
import torch
from accelerate import Accelerator

from gpt2_rlhf.ppo_trainer.metrics import Clock, Means, explained_variance


def test_means_give_every_token_the_same_weight_in_any_microbatch():
    means = Means()
    means.add("x", torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[True, True, False]]))
    means.add("x", torch.tensor([[6.0, 50.0, 50.0]]), torch.tensor([[True, False, False]]))
    means.add("y", torch.tensor([True, False]))
    found, variances = means.over_processes(Accelerator())
    assert found == {"x": 3.0, "y": 0.5}  # (1 + 2 + 6) / 3
    assert variances == pytest.approx({"x": 14 / 3, "y": 0.25})  # (1 + 4 + 36) / 3 - 9 and 1/2 - 1/4


def test_the_mean_over_padding_alone_is_nan():
    means = Means()
    means.add("x", torch.tensor([7.0]), torch.tensor([False]))
    assert math.isnan(means.over_processes(Accelerator())[0]["x"])


def test_explained_variance_of_three_returns_by_hand():
    # returns 1, 2, 3 (variance 2/3); values 1, 2, 2: errors 0, 0, 1 (variance 1/3 - 1/9 = 2/9)
    means = Means()
    means.add("error", torch.tensor([0.0, 0.0, 1.0]))
    means.add("return", torch.tensor([1.0, 2.0, 3.0]))
    _, variances = means.over_processes(Accelerator())
    assert explained_variance(variances["error"], variances["return"]) == pytest.approx(1 - (2 / 9) / (2 / 3))
    assert math.isnan(explained_variance(0, 0))


def test_phases_and_the_rest_add_up_to_the_whole():
    clock = Clock()
    for name in ("rollout", "update"):
        with clock.phase(name):
            time.sleep(0.02)
    time.sleep(0.02)
    found = clock.metrics(tokens=300, episodes=6)
    assert found["time/score_s"] == 0
    assert min(found["time/rollout_s"], found["time/update_s"], found["time/other_s"]) >= 0.02
    wall_s = sum(found[f"time/{name}_s"] for name in ("rollout", "score", "update", "other"))
    assert found["tokens_per_s"] == pytest.approx(300 / wall_s)
    assert found["episodes_per_s"] == pytest.approx(6 / wall_s)
