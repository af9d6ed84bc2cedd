"""Show the progress of a trainer, write its metrics to metrics.jsonl, and stop it with a checkpoint on a signal.

Both callbacks work with SFTTrainer, RewardTrainer and PPOTrainer. The ETA is from the steps of this process alone, so
it is right after a resume. metrics.jsonl is the log history of the trainer, which its checkpoints restore: each log is
in it once, also after a resume.
"""

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gpt2_rlhf.config import metrics
from gpt2_rlhf.launch import world
from gpt2_rlhf.launch.progress_line import can_rewrite, rewrite
from gpt2_rlhf.launch.whole_run import Expected, in_words
from gpt2_rlhf.store.files import replacing

_LINE_EVERY_S = 10.0  # in a log file; the line of a terminal is rewritten at each log


class Interrupted(Exception):
    """A signal to stop arrived; a checkpoint has been written."""

    def __init__(self, signum: int, checkpoint: str | None):
        self.signum, self.checkpoint = signum, checkpoint
        super().__init__(signal.Signals(signum).name)


class Progress(TrainerCallback):
    """Print a line with step, ETA of stage and run, and figures, and write each log as a line of metrics.jsonl."""

    def __init__(self, name: str, metrics_file: Path, expected: Expected | None = None):
        self._name, self._metrics_file, self._expected = name, metrics_file, expected
        self._created = time.monotonic()
        self._first_step, self._started, self._printed = 0, 0.0, -_LINE_EVERY_S
        self._waiting = ""  # the newest line if it is not printed: the step may log more, or it is too early
        self._figures: dict[str, float] = {}
        self._rewrites_line = can_rewrite()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock of the ETA."""
        self._first_step, self._started = state.global_step, time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the metrics and print the line."""
        if not state.is_world_process_zero:
            return
        if state.global_step == self._first_step:
            self._started = time.monotonic()  # the time of an evaluation before the first step is not part of a step
        with replacing(self._metrics_file) as file:
            for record in state.log_history:
                file.write(json.dumps({"step": record["step"], **record}) + "\n")
        self._print(state, given["logs"])

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print the newest line if it is not printed yet; on a terminal, end the line."""
        if state.is_world_process_zero and (self._waiting or self._rewrites_line):
            print(self._waiting, flush=True)

    def _print(self, state: TrainerState, logs: dict[str, Any]) -> None:
        # the training and the evaluation of a step are logged one after the other, and one line shows both
        self._figures |= {label: float(logs[key]) for key, label in metrics.PROGRESS.items() if key in logs}
        now = time.monotonic()
        line = f"  {self._name} {state.global_step}/{state.max_steps}"
        done = state.global_step - self._first_step
        if done > 0:
            eta_s = (now - self._started) / done * (state.max_steps - state.global_step)
            line += f"  eta {eta_s:.0f} s"
            if self._expected is not None and self._expected.later_s > 0:
                line += f", whole run {in_words(self._expected.rest_s(now - self._created, eta_s))}"
        line += "".join(f"  {label} {value:z.3g}" for label, value in self._figures.items())
        if self._rewrites_line:
            rewrite(line)
        elif now - self._printed >= _LINE_EVERY_S and state.global_step < state.max_steps:
            print(line, flush=True)
            self._printed, self._waiting = now, ""
        else:
            self._waiting = line


class StopOnSignal(TrainerCallback):
    """Save a checkpoint at the end of the step after Ctrl-C, SIGTERM or Slurm's signal, then raise Interrupted."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Replace the handlers of the signals while training lasts."""
        self._before = {s: signal.signal(s, self._note) for s in world.STOPS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Request a checkpoint if any of the processes received a signal, since all of them save together."""
        if torch.distributed.is_initialized():
            newest = torch.tensor(self._signum or 0, device=args.device)
            torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX)
            self._signum = int(newest.item()) or None
        if self._signum is not None:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop after the checkpoint is complete."""
        if self._signum is not None:
            raise Interrupted(self._signum, f"checkpoint-{state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the handlers of the signals."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
