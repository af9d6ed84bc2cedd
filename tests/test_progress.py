import json
import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from gpt2_rlhf.progress import Interrupted, Progress, StopOnSignal


def state(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=40, is_world_process_zero=True)


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def steps_kept(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_log_becomes_a_line_with_its_step(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    progress = Progress("sft", path)
    progress.on_train_begin(args, state(0), TrainerControl())
    for step in (10, 20):
        progress.on_log(args, state(step), TrainerControl(), logs={"loss": 2.0})
    assert steps_kept(path) == [10, 20]


def test_a_resumed_run_keeps_each_step_once(tmp_path: Path, args: TrainingArguments) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (10, 20, 30)) + '{"step": 40, "lo')
    resumed = Progress("sft", path)
    resumed.on_train_begin(args, state(20), TrainerControl())
    resumed.on_log(args, state(30), TrainerControl(), logs={"loss": 5.0})
    assert steps_kept(path) == [10, 20, 30]
    assert json.loads(path.read_text().splitlines()[-1])["loss"] == 5.0


def test_the_eta_counts_from_the_step_of_the_resume(
    tmp_path: Path, args: TrainingArguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("sft", tmp_path / "metrics.jsonl")
    progress.on_train_begin(args, state(20), TrainerControl())
    for step in range(21, 31):
        progress.on_step_end(args, state(step), TrainerControl())
    now[0] += 30.0  # 10 steps took 30 s, 10 are left
    progress.on_log(args, state(30), TrainerControl(), logs={"loss": 0.5})
    assert capsys.readouterr().out == "  sft 30/40  loss 0.5  eta 30 s\n"


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
    stop.on_train_end(args, state(7), control)
    assert signal.getsignal(signal.SIGTERM) == before
