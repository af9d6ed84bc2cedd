"""Show how far a trainer is, keep its metrics, and let it stop with a checkpoint when asked to.

Both are callbacks that work alike under SFTTrainer, RewardTrainer and PPOTrainer. The progress line has an ETA from
this process's own steps, so it is right after a resume; metrics.jsonl holds each log once, also after one, and both
logs of a step that trained and then evaluated.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SHOWN = {
    "loss": "loss",
    "train_loss": "mean loss",
    "accuracy": "accuracy",
    "objective/scores": "reward",
    "objective/kl": "kl",
    "eval/reward": "held-out reward",
    "eval/judge_reward": "judge",
    "eval/utility": "utility",
    "eval/kl_nats": "held-out kl",
    "learning_rate": "lr",
    "lr": "lr",
}
_LINE_EVERY_S = 10.0  # in a log file; a terminal's line is rewritten in place at each log


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; a checkpoint has been written."""

    def __init__(self, signum: int, checkpoint: str | None):
        self.signum = signum
        self.checkpoint = checkpoint
        super().__init__(signal.Signals(signum).name)


class Progress(TrainerCallback):
    """One line with step, figures and ETA; each log as a line of metrics.jsonl."""

    def __init__(self, name: str, metrics_file: Path):
        self._name = name
        self._metrics_file = metrics_file
        self._first_step = 0
        self._started = 0.0
        self._printed = -_LINE_EVERY_S
        self._waiting = ""  # the newest line: too early to print, or the last step's, which may log more
        self._figures: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and drop the lines of steps that are about to be done again."""
        self._first_step = state.global_step
        self._started = time.monotonic()
        if state.is_world_process_zero:
            self._keep(lambda record: record["step"] <= self._first_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep the metrics and rewrite the line."""
        if not state.is_world_process_zero or logs is None:
            return
        record = {"step": state.global_step, **logs}
        if state.global_step == self._first_step:
            # what was logged here before the first step of this process may already have been, before an interruption
            self._keep(lambda old: old["step"] != self._first_step or old.keys() != record.keys())
            self._started = time.monotonic()  # an evaluation before the first step is not a step's work
        with self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._print(state, logs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Print what waits, or leave the cursor on a line of its own."""
        if state.is_world_process_zero and (self._waiting or sys.stdout.isatty()):
            print(self._waiting, flush=True)

    def _keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keep these lines of metrics.jsonl, and no last line that an interruption cut short."""
        if self._metrics_file.exists():
            with self._metrics_file.open(encoding="utf-8") as lines:
                kept = [line for line in lines if line.endswith("\n") and wanted(json.loads(line))]
            self._metrics_file.write_text("".join(kept), encoding="utf-8")

    def _print(self, state: TrainerState, logs: dict[str, Any]) -> None:
        # a step's training and its evaluation are logged one after the other: one line shows both
        self._figures |= {label: float(logs[key]) for key, label in _SHOWN.items() if key in logs}
        now = time.monotonic()
        line = f"  {self._name} {state.global_step}/{state.max_steps}"
        done = state.global_step - self._first_step
        if done > 0:
            line += f"  eta {(now - self._started) / done * (state.max_steps - state.global_step):.0f} s"
        line += "".join(f"  {label} {value:.3g}" for label, value in self._figures.items())
        if sys.stdout.isatty():  # a line that wraps cannot be rewritten in place
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        elif now - self._printed >= _LINE_EVERY_S and state.global_step < state.max_steps:
            print(line, flush=True)
            self._printed, self._waiting = now, ""
        else:
            self._waiting = line


class StopOnSignal(TrainerCallback):
    """Turn Ctrl-C and SIGTERM into a checkpoint at the next step's end, then Interrupted."""

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Listen for as long as training lasts."""
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if a signal came, to any of the processes: saving is a joint step."""
        if torch.distributed.is_initialized():
            newest = torch.tensor(self._signum or 0, device=args.device)
            torch.distributed.all_reduce(newest, torch.distributed.ReduceOp.MAX)
            self._signum = int(newest.item()) or None
        if self._signum is not None:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop once the checkpoint is whole."""
        if self._signum is not None:
            raise Interrupted(self._signum, f"checkpoint-{state.global_step}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
