import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2LMHeadModel, TrainerCallback

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Guard
from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models.sampling import Answer
from gpt2_rlhf.ppo_trainer import checkpoints
from gpt2_rlhf.ppo_trainer.watch import Watch
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")

GUARD = Guard(enabled=True, max_kl_nats=5, min_eos_rate=0, min_distinct_2=0, max_length_ratio=100)
PROMPTS = ["one", "two"]


def watch(directory: Path, rewards: dict[int, float], kl_nats: float = 0.0, guard: Guard = GUARD) -> Watch:
    """Return a watch with these mean rewards by update for any policy; the two prompts are 1 below and above."""

    def measure(update: int, *models: Any) -> tuple[Measured, list[Answer]]:
        noise = np.array([-1.0, 1.0])
        ones = np.ones(2)
        kl = (kl_nats if update else 0.0) * ones
        measured = Measured(rewards[update] + noise, None, None, 4 * ones, ones == 1, ones, kl, kl, kl, update=update)
        return measured, [Answer(" a", [1], True)] * 2

    return Watch(directory, PROMPTS, measure, None, guard)


MODEL = tiny.policy()


def test_each_measurement_is_kept_on_disk_and_gives_the_best_update_so_far(tmp_path: Path):
    one = watch(tmp_path, {0: 0.0, 4: 2.0, 8: 1.0})
    assert [one.measure(update, MODEL, None).best_update for update in (0, 4, 8)] == [0, 4, 4]
    assert one.best_by == "reward"  # there is no judge
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"update-00000{n}.jsonl" for n in (0, 4, 8)]


def test_a_resumed_watch_reads_the_measurements_up_to_its_checkpoint_only(tmp_path: Path):
    first = watch(tmp_path / "heldout", {0: 0.0, 4: 1.0, 8: 2.0})
    for update in (0, 4, 8):
        first.measure(update, MODEL, None)
        first.save(tmp_path / f"checkpoint-{update}")
    for file in (tmp_path / "heldout").iterdir():  # damaged; the copies in the checkpoints are not
        file.write_bytes(b"")
    resumed = watch(tmp_path / "heldout", {8: 0.5})
    result = resumed.resume(6, tmp_path / "checkpoint-4")
    assert result is not None
    assert result.best_update == 4
    assert resumed.measure(8, MODEL, None).best_update == 4  # not what the first run found at update 8
    assert watch(tmp_path / "heldout", {}).resume(0, None) is None


def test_a_passed_limit_stops_the_run_and_its_update_is_not_the_best(tmp_path: Path):
    one = watch(tmp_path, {0: 0.0, 4: 9.0}, kl_nats=6)
    assert one.measure(0, MODEL, None).stop is None
    result = one.measure(4, MODEL, None)
    assert result.stop == "update 4: KL to SFT 6.0 nats per answer, over ppo.guard.max_kl_nats 5"
    assert result.best_update == 0


def test_the_report_has_the_first_the_last_and_the_kept_measurement(tmp_path: Path):
    one = watch(tmp_path, {0: 0.0, 4: 2.0, 8: 1.0})
    for update in (0, 4, 8):
        one.measure(update, MODEL, None)
    report = one.report(kept_update=4)
    assert report["measured_updates"] == [0, 4, 8]
    assert [report[name]["update"] for name in ("start", "last", "kept")] == [0, 8, 4]
    assert report["kept"]["reward"]["mean"] == pytest.approx(2.0)
    assert report["kept"]["reward"]["n"] == 2
    assert report["kept"]["utility"] is None
    assert one.report(kept_update=6)["kept"] is None


def arguments(directory: Path, **changes: Any) -> Any:
    """Return arguments for 5 updates, measured after every second one and at the end."""
    defaults = {"total_episodes": 20, "eval_strategy": "steps", "eval_steps": 2}
    return tiny.arguments(directory, **{**defaults, **changes})


def measured_at(trainer: Any) -> list[int]:
    return [entry["step"] for entry in trainer.state.log_history if "eval/reward" in entry]


def test_ours_measures_before_the_first_update_every_eval_steps_and_at_the_end_and_stock_never_does(tmp_path):
    stock = tiny.stock(arguments(tmp_path))
    stock.train()
    assert measured_at(stock) == []
    with pytest.raises(AttributeError):
        stock.evaluate()
    ours = tiny.ours(arguments(tmp_path), watch=tiny.watch(tmp_path / "heldout"))
    ours.train()
    assert measured_at(ours) == [0, 2, 4, 5]


def test_measuring_does_not_change_the_trained_weights(tmp_path):
    watched = tiny.ours(arguments(tmp_path), watch=tiny.watch(tmp_path / "heldout"))
    alone = tiny.ours(tiny.arguments(tmp_path, total_episodes=20))
    for trainer in (watched, alone):
        trainer.train()
    assert tiny.trained_digest(watched) == tiny.trained_digest(alone)


def test_the_checkpoint_of_the_best_policy_is_kept_beside_newer_ones(tmp_path):
    rewards = {0: 0.0, 2: 9.0, 4: 1.0, 5: 2.0}
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer = tiny.ours(args, watch=watch(tmp_path / "heldout", rewards))
    trainer.train()
    assert trainer.best_update == 2
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]


def test_the_best_policy_is_kept_also_without_save_strategy(tmp_path):
    trainer = tiny.ours(arguments(tmp_path), watch=watch(tmp_path / "heldout", {0: 0.0, 2: 9.0, 4: 1.0, 5: 2.0}))
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    last = tiny.digest(trainer.policy_model)
    checkpoints.load_policy(trainer.policy_model, tmp_path / "checkpoint-2")
    assert tiny.digest(trainer.policy_model) != last
    assert tiny.digest(GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-2")) == tiny.digest(trainer.policy_model)


def test_a_passed_limit_ends_training_at_that_update(tmp_path):
    rewards = {0: 0.0, 2: 1.0, 4: 2.0}
    trainer = tiny.ours(arguments(tmp_path), watch=watch(tmp_path / "heldout", rewards, kl_nats=6))
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.stopped == "update 2: KL to SFT 6.0 nats per answer, over ppo.guard.max_kl_nats 5"
    assert trainer.best_update == 0


def diverging(after: int) -> Any:
    """Return a score function that gives NaN once it has scored `after` batches."""
    calls = 0

    def score(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        nonlocal calls
        calls += 1
        return [float("nan") if calls > after else 1.0] * len(answers)

    return score


def test_scores_that_are_not_finite_stop_a_guarded_run_and_fail_an_unguarded_one(tmp_path):
    rewards = {0: 0.0, 2: 1.0}
    guarded = tiny.ours(
        arguments(tmp_path), watch=watch(tmp_path / "heldout", rewards), score_function=diverging(after=3)
    )
    guarded.train()
    assert guarded.stopped is not None
    assert guarded.stopped.startswith("ppo: update 4: 4 of 4 scores are not finite")
    assert (guarded.state.global_step, guarded.best_update) == (3, 2)

    off = dataclasses.replace(GUARD, enabled=False)
    for one in (None, watch(tmp_path / "off", rewards, guard=off)):
        with pytest.raises(UserError, match="update 4: 4 of 4 scores are not finite"):
            tiny.ours(arguments(tmp_path), watch=one, score_function=diverging(after=3)).train()


class Die(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def without_speed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if not re.match("time/|.*_per_s", name)} for entry in history]


def test_a_resumed_run_measures_and_decides_like_an_uninterrupted_one(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    straight = tiny.ours(arguments(tmp_path / "straight", **saving), watch=tiny.watch(tmp_path / "straight-heldout"))
    straight.train()
    heldout = tmp_path / "stopped-heldout"
    with pytest.raises(KeyboardInterrupt):
        tiny.ours(arguments(tmp_path / "stopped", **saving), watch=tiny.watch(heldout), callbacks=[Die()]).train()
    resumed = tiny.ours(arguments(tmp_path / "stopped", **saving), watch=tiny.watch(heldout))
    resumed.train(str(tmp_path / "stopped" / "checkpoint-3"))
    assert tiny.trained_digest(resumed) == tiny.trained_digest(straight)
    assert without_speed(resumed.state.log_history) == without_speed(straight.state.log_history)
    assert resumed.best_update == straight.best_update
    for file in (tmp_path / "straight-heldout").iterdir():
        assert file.read_bytes() == (heldout / file.name).read_bytes()


def test_a_run_that_the_guard_stopped_stays_stopped_when_resumed(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        trainer = tiny.ours(args, watch=watch(tmp_path / "heldout", {0: 0.0, 2: 1.0}, kl_nats=6))
        trainer.train(checkpoint)
        assert trainer.state.global_step == 2
        assert trainer.stopped is not None
