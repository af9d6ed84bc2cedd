"""What the stages of a run are called in messages."""

from pathlib import Path

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import Stage


def run_of(root: Path, names: tuple[str, ...], seeds: tuple[int, ...]) -> Run:
    """A run whose PPO stage is one a seed, and whose other stages are shared."""
    composed = compose.load([])
    plans = tuple(
        {name: Stage(name, root / (f"{name}-{seed}" if name == "ppo" else name), {"seed": seed}, {}) for name in names}
        for seed in seeds
    )
    shared = {name: plans[0][name] for name in names if name != "ppo"}
    return Run(composed.settings, (), composed.values, tuple({**plan, **shared} for plan in plans))


@pytest.mark.parametrize(
    ("names", "seeds", "labels"),
    [
        (("sft", "ppo"), (3,), ["sft", "ppo"]),
        (("sft", "ppo"), (3, 5), ["sft", "ppo, seed 3", "ppo, seed 5"]),
        (("sft",), (3, 5), ["sft"]),  # `make sft` with several seeds of PPO
    ],
)
def test_a_stage_has_its_seed_in_its_name_only_if_it_is_of_one_of_several(
    tmp_path: Path, names: tuple[str, ...], seeds: tuple[int, ...], labels: list[str]
) -> None:
    run = run_of(tmp_path, names, seeds)
    assert [run.label(stage) for stage in run.stages] == labels
