import json
import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from gpt2_rlhf.launch import progress
from gpt2_rlhf.launch.child import Interrupted
from gpt2_rlhf.launch.progress import Progress, StopOnSignal
from gpt2_rlhf.launch.progress_line import Doing


def state(step: int, history: list[dict[str, float]] | None = None) -> TrainerState:
    entries = [] if history is None else history
    return TrainerState(global_step=step, max_steps=40, is_world_process_zero=True, log_history=entries)


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Doing]:
    """What was told to the process that started this one."""
    received: list[Doing] = []
    monkeypatch.setattr(progress, "tell", lambda doing: received.append(doing) is None)
    return received


def log(callback: Progress, args: TrainingArguments, at: TrainerState, logs: dict[str, float]) -> None:
    """Add the logs to the history and call the callback, as Trainer.log does."""
    at.log_history.append({**logs, "step": at.global_step})
    callback.on_log(args, at, TrainerControl(), logs=logs)


def steps_kept(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_log_becomes_a_line_with_its_step(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    progress = Progress("sft", path)
    progress.on_train_begin(args, state(0), TrainerControl())
    history: list[dict[str, float]] = []
    for step in (10, 20):
        log(progress, args, state(step, history), {"loss": 2.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 10, "loss": 2.0},
        {"step": 20, "loss": 2.0},
    ]


def test_a_resumed_run_keeps_each_step_once(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (10, 20, 30)) + '{"step": 40, "lo')
    resumed = Progress("sft", path)
    history = [{"loss": 1.0, "step": 10}, {"loss": 1.0, "step": 20}]  # of the checkpoint
    resumed.on_train_begin(args, state(20, history), TrainerControl())
    log(resumed, args, state(30, history), {"loss": 5.0})
    assert steps_kept(path) == [10, 20, 30]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 5.0


def test_the_eta_counts_from_the_step_of_the_resume_which_is_printed(
    tmp_path: Path,
    args: TrainingArguments,
    monkeypatch: pytest.MonkeyPatch,
    told: list[Doing],
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    callback = Progress("sft", tmp_path / "metrics.jsonl")
    callback.on_train_begin(args, state(20), TrainerControl())
    assert capsys.readouterr().out == "sft goes on from step 20 of 40\n"
    now[0] += 30.0  # 10 steps took 30 s, 10 are left
    log(callback, args, state(30), {"loss": 0.5})
    assert told == [Doing("30/40", 30.0, ["loss 0.5"])]


def test_an_evaluation_before_the_first_step_does_not_enter_the_eta(
    tmp_path: Path, args: TrainingArguments, monkeypatch: pytest.MonkeyPatch, told: list[Doing]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    callback = Progress("ppo", tmp_path / "metrics.jsonl")
    callback.on_train_begin(args, state(0), TrainerControl())
    now[0] += 500.0
    log(callback, args, state(0), {"eval/reward": 1.0})
    now[0] += 20.0  # one step, and 39 to go
    log(callback, args, state(1), {"objective/scores": 2.0})
    assert [(doing.step, doing.eta_s) for doing in told] == [("0/40", None), ("1/40", 780.0)]


def test_held_out_figures_stand_beside_the_training_of_their_step_only_and_reward_and_kl_come_first(
    tmp_path: Path, args: TrainingArguments, told: list[Doing]
) -> None:
    callback = Progress("ppo", tmp_path / "metrics.jsonl")
    callback.on_train_begin(args, state(0), TrainerControl())
    training = {"lr": 1e-5, "objective/kl": 3.0, "objective/scores": 0.5, "val/ratio": 1.0}
    log(callback, args, state(4), training)
    log(callback, args, state(4), {"eval/kl_nats": 2.0, "eval/reward": 0.25, "eval/utility": 1.5})
    log(callback, args, state(5), training)
    of_training = ["reward 0.5", "KL 3"]
    assert [doing.figures for doing in told] == [
        [*of_training, "lr 1e-05"],
        [*of_training, "held-out utility 1.5", "held-out reward 0.25", "held-out KL 2", "lr 1e-05"],
        [*of_training, "lr 1e-05"],
    ]


def logs_of(path: Path) -> list[tuple[int, str]]:
    """Step and first metric of each line."""
    return [(record["step"], list(record)[1]) for record in map(json.loads, path.read_text().splitlines())]


def run_steps(progress: Progress, args: TrainingArguments, steps: range, history: list[dict[str, float]]) -> None:
    """Log what PPO's train() logs, with an evaluation before the first step and at every second."""
    progress.on_train_begin(args, state(steps.start - 1, history), TrainerControl())
    if steps.start == 1:
        log(progress, args, state(0, history), {"eval/reward": 0.0})
    for step in steps:
        log(progress, args, state(step, history), {"objective/scores": 1.0})
        if step % 2 == 0:
            log(progress, args, state(step, history), {"eval/reward": 1.0})


@pytest.mark.parametrize("checkpoint", [0, 2, 3, 4])
def test_after_a_resume_every_training_and_evaluation_line_is_there_once(
    tmp_path: Path, args: TrainingArguments, checkpoint: int
) -> None:
    path = tmp_path / "metrics.jsonl"
    history: list[dict[str, float]] = []
    run_steps(Progress("ppo", path), args, range(1, 6), history)
    restored = [entry for entry in history if entry["step"] <= checkpoint] if checkpoint else []
    run_steps(Progress("ppo", path), args, range(checkpoint + 1, 7), restored)
    train, evaluate = "objective/scores", "eval/reward"
    assert logs_of(path) == [
        (0, evaluate),
        (1, train),
        (2, train),
        (2, evaluate),
        (3, train),
        (4, train),
        (4, evaluate),
        (5, train),
        (6, train),
        (6, evaluate),
    ]


def test_a_run_that_was_done_but_for_its_summary_keeps_its_last_step(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    progress = Progress("sft", path)
    progress.on_train_begin(args, state(0), TrainerControl())
    history: list[dict[str, float]] = []
    log(progress, args, state(40, history), {"loss": 2.0})
    restored = [dict(entry) for entry in history]  # of the checkpoint of the last step: there is no step left to do
    log(progress, args, state(40, history), {"train_loss": 3.0})
    resumed = Progress("sft", path)
    resumed.on_train_begin(args, state(40, restored), TrainerControl())
    log(resumed, args, state(40, restored), {"train_loss": 3.0})
    assert logs_of(path) == [(40, "loss"), (40, "train_loss")]


def test_other_processes_than_the_first_write_nothing(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    other = TrainerState(global_step=0, max_steps=40, is_world_process_zero=False)
    progress = Progress("ppo", path)
    progress.on_train_begin(args, other, TrainerControl())
    progress.on_log(args, other, TrainerControl(), logs={"eval/reward": 1.0})
    assert path.read_text() == '{"step": 9}\n'


def test_a_signal_asks_for_a_checkpoint_and_stops_once_it_is_written(args: TrainingArguments) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop, control = StopOnSignal(), TrainerControl()
    stop.on_train_begin(args, state(0), control)
    stop.on_step_end(args, state(6), control)
    assert not control.should_save
    os.kill(os.getpid(), signal.SIGTERM)
    stop.on_step_end(args, state(7), control)
    assert control.should_save
    with pytest.raises(Interrupted) as stopped:
        stop.on_save(args, state(7), control)
    assert (stopped.value.signum, stopped.value.checkpoint) == (signal.SIGTERM, "checkpoint-7")
    assert str(stopped.value) == "SIGTERM"  # the line on standard error names it so
    stop.on_train_end(args, state(7), control)
    assert signal.getsignal(signal.SIGTERM) == before
