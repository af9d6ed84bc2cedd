from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.sft_config import SFTConfig

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings, with_value
from gpt2_rlhf.models import room
from gpt2_rlhf.store import files
from gpt2_rlhf.store.stage import Stage

SHAPE = {"vocab_size": 1000, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
WEIGHTS_BYTES = 4 * GPT2LMHeadModel(GPT2Config.from_dict(SHAPE)).num_parameters()
CHECKPOINT_BYTES = 3 * WEIGHTS_BYTES  # the weights, and two moments of each
SMALL_BYTES = 10_000_000
ROWS = 80
ARGS = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "save_strategy": "steps",
    "activation_checkpointing": False,
}


def settings(*overrides: str, **chosen: object) -> Settings:
    shape = ", ".join(f"{name}: {size}" for name, size in SHAPE.items())
    found = compose.load(["model=gpt2_random", f"model.random={{{shape}}}", *overrides]).settings
    for name, value in {**ARGS, **chosen}.items():
        found = with_value(found, f"sft.args.{name}", value)
    return found


def stage(folder: Path) -> Stage:
    data = Stage("data", folder / "data-0", {}, {})
    files.write_json(data.directory / "manifest.json", {"metrics": {"tables": {"sft": {"pairs": ROWS}}}})
    return Stage("sft", folder / "sft-0", {"processes": 1}, {"data": data})


def plan(folder: Path, **chosen: object) -> room.Plan:
    given: dict[str, Any] = {**ARGS, **chosen}
    return [(stage(folder), SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, **given))]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"save_steps": 2, "save_total_limit": 2}, 3 * CHECKPOINT_BYTES),  # 10 steps; the third before the first goes
        ({"save_steps": 10, "save_total_limit": 2}, CHECKPOINT_BYTES + WEIGHTS_BYTES),
        ({"save_steps": 3, "save_total_limit": None}, 4 * CHECKPOINT_BYTES + WEIGHTS_BYTES),  # 3, 6, 9 and the last
        ({"save_steps": 0.5, "save_total_limit": None}, 2 * CHECKPOINT_BYTES + WEIGHTS_BYTES),  # a share of the steps
        ({"save_strategy": "epoch", "num_train_epochs": 3}, 3 * CHECKPOINT_BYTES + WEIGHTS_BYTES),
        ({"save_strategy": "no"}, WEIGHTS_BYTES),
        ({"save_steps": 2, "save_total_limit": 2, "optim": "sgd"}, 3 * WEIGHTS_BYTES),
        ({"save_steps": 5, "save_total_limit": 2, "max_steps": 5}, CHECKPOINT_BYTES + WEIGHTS_BYTES),
    ],
)
def test_the_most_that_sft_needs_at_once(chosen: dict[str, Any], expected: int, tmp_path: Path) -> None:
    assert room.peak_bytes(settings(**chosen), plan(tmp_path, **chosen)) == expected + SMALL_BYTES


def test_shares_of_a_language_model_hold_a_tied_output_layer_twice(tmp_path: Path) -> None:
    given = plan(tmp_path, save_steps=1, save_total_limit=2)
    whole, shares = (room.peak_bytes(settings(*more), given) for more in ((), ("launch.sharded=true",)))
    assert shares - whole == 3 * 4 * SHAPE["vocab_size"] * SHAPE["n_embd"]


def test_a_checkpoint_of_an_adapter_needs_no_room_for_the_weights_beneath_it(tmp_path: Path) -> None:
    given = plan(tmp_path, save_steps=1, save_total_limit=None)
    whole = room.peak_bytes(settings(), given)
    assert WEIGHTS_BYTES < room.peak_bytes(settings("sft.peft.r=2"), given) - SMALL_BYTES < whole / 4


def test_a_disk_with_too_little_room_is_refused_with_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda path: SMALL_BYTES)
    needed = f"{(SMALL_BYTES + 3 * CHECKPOINT_BYTES) / 1e6:.0f} MB"
    line = (
        rf"output_dir: .*: 10 MB free, but sft need up to {needed}; make room, set .* save_steps or save_total_limit$"
    )
    with pytest.raises(UserError, match=line):
        room.require(settings(), plan(tmp_path, save_steps=2, save_total_limit=2))


def test_what_an_interrupted_run_has_on_disk_is_not_required_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = plan(tmp_path, save_steps=2, save_total_limit=2)
    there = given[0][0].checkpoints_dir / "checkpoint-2" / "optimizer.pt"
    there.parent.mkdir(parents=True)
    there.write_bytes(bytes(CHECKPOINT_BYTES))
    monkeypatch.setattr(room, "free_bytes", lambda path: 2 * CHECKPOINT_BYTES + SMALL_BYTES)
    room.require(settings(), given)
    there.unlink()
    with pytest.raises(UserError, match="MB free"):
        room.require(settings(), given)


def test_a_limit_on_the_size_of_a_file_is_refused_before_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "largest_file", lambda: 2 * WEIGHTS_BYTES - 1)
    with pytest.raises(UserError, match=r"`ulimit -f` allows files of 0\.\d MB, but the optimizer in a checkpoint has"):
        room.require(settings(), plan(tmp_path, save_steps=2))
    monkeypatch.setattr(room, "largest_file", lambda: 2 * WEIGHTS_BYTES)
    room.require(settings(), plan(tmp_path, save_steps=2))
