"""Tell the progress of a trainer, write its metrics, seal its checkpoints, and stop it with one on a signal.

SealCheckpoints is not for PPOTrainer, which seals its own; the other callbacks work with each of TRL's trainers. The
ETA is from the steps of this process alone, so it is right after a resume. metrics.jsonl is the log history of the
trainer, which its checkpoints restore: each log is in it once, also after a resume.
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
from gpt2_rlhf.launch.child import Interrupted
from gpt2_rlhf.launch.progress_line import Doing, tell
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import replacing


class Progress(TrainerCallback):
    """Tell step, ETA and figures at each log, and write each log as a line of metrics.jsonl."""

    def __init__(self, name: str, metrics_file: Path):
        self._name, self._metrics_file = name, metrics_file
        self._first_step, self._started = 0, 0.0
        self._step, self._figures = -1, dict[str, float]()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock of the ETA, and print from where a resumed stage goes on."""
        self._first_step, self._started = state.global_step, time.monotonic()
        if state.global_step > 0 and state.is_world_process_zero:
            print(f"{self._name} goes on from step {state.global_step} of {state.max_steps}", flush=True)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the metrics, and tell the newest."""
        if not state.is_world_process_zero:
            return
        if state.global_step == self._first_step:
            self._started = time.monotonic()  # the time of an evaluation before the first step is not part of a step
        with replacing(self._metrics_file) as file:
            for record in state.log_history:
                file.write(json.dumps({"step": record["step"], **record}) + "\n")
        if state.global_step != self._step:  # what was measured at an earlier step is not new
            self._step, self._figures = state.global_step, {}
        self._figures |= {key: float(given["logs"][key]) for key in metrics.PROGRESS if key in given["logs"]}
        done, eta_s = state.global_step - self._first_step, None
        if done > 0:
            eta_s = (time.monotonic() - self._started) / done * (state.max_steps - state.global_step)
        shown = [
            f"{label} {self._figures[key]:z.3g}" for key, label in metrics.PROGRESS.items() if key in self._figures
        ]
        tell(Doing(f"{state.global_step}/{state.max_steps}", eta_s, shown))


class SealCheckpoints(TrainerCallback):
    """Flush each checkpoint of transformers' Trainer to the disk and record its files, so that it counts as whole."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the checkpoint when each process has written its random state."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            digests.seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


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
