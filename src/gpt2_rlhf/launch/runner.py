"""Run one stage in a process of its own, and turn whatever happens there into a manifest, one line, or an exit code.

A stage's memory and Accelerate's global state go back to the system when its process ends. On Linux the process is
forked from one that has imported TRL and touched no device, which saves the seven seconds of imports per stage.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import world
from gpt2_rlhf.store.files import sha256, write_json
from gpt2_rlhf.store.stage import Outcome, Stage

_LIBRARIES = ("trl", "transformers", "torch", "accelerate", "datasets", "peft", "huggingface_hub", "hydra-core")
_PR_SET_PDEATHSIG = 1  # prctl(2)
_EXIT_USER = 2


Step = Callable[[Settings, Stage], Outcome]


def run_in_child(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    """Run an action in a process of its own; `name` is what messages call it, and a defect is logged in `log_dir`.

    Raises:
        SystemExit: it did not get there; the child has said why. The code is 2 for what the user can mend, 130 or 143
            after Ctrl-C or SIGTERM, 1 for a defect.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    sys.stdout.flush()
    child = context.Process(target=_child, args=(name, log_dir, action), name=name)
    child.start()
    with _signals_passed_to(child.pid):
        child.join()
    code = child.exitcode or 0
    if code == -signal.SIGKILL:
        print(
            f"error: {name} was killed by the system, most often for lack of memory; lower "
            f"per_device_train_batch_size or local_rollout_forward_batch_size, then run the same command again",
            file=sys.stderr,
        )
    if code != 0:
        raise SystemExit(128 - code if code < 0 else code)


def _child(name: str, log_dir: Path, action: Callable[[], None]) -> None:
    _die_with_parent()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(_guarded(name, log_dir, action))


def _guarded(name: str, log_dir: Path, action: Callable[[], None]) -> int:
    """The exit code of `action`, after one line about what went wrong where something did."""
    from gpt2_rlhf.launch.progress import Interrupted  # it needs transformers, which this process has by now

    again = "run the same command again to go on"
    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_USER
    except Interrupted as stop:
        print(f"\n{name} stopped by {stop} after writing {stop.checkpoint}; {again}", file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print(f"\n{name} interrupted; {again}", file=sys.stderr)
        return 128 + signal.SIGINT
    except _Terminated:
        print(f"\n{name} terminated; {again}", file=sys.stderr)
        return 128 + signal.SIGTERM
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: {name}:{where}: {error.strerror or error}; mend that, then {again}", file=sys.stderr)
        return _EXIT_USER
    except Exception as error:  # the last resort: a defect of ours or of a library, kept whole for a report
        log_dir.mkdir(parents=True, exist_ok=True)
        log = log_dir / "error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        first = (str(error).splitlines() or [""])[0]
        print(f"error: {name}: {type(error).__name__}: {first} (details in {log})", file=sys.stderr)
        return 1
    return 0


def build(step: Step, settings: Settings, stage: Stage) -> None:
    """Run a stage in this process and write its manifest."""
    started, started_at = time.perf_counter(), datetime.now(UTC)
    stage.directory.mkdir(parents=True, exist_ok=True)
    _quiet_libraries(stage)
    # transformers' default is below the checkpoints, which go when the stage is done
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(stage.directory / "tensorboard"))
    outcome = step(settings, stage)
    if world.rank() == 0:
        write_json(stage.directory / "manifest.json", _manifest(settings, stage, outcome, started, started_at))
        shutil.rmtree(stage.checkpoints_dir, ignore_errors=True)  # of no use to a finished stage


def _manifest(
    settings: Settings, stage: Stage, outcome: Outcome, started: float, started_at: datetime
) -> dict[str, Any]:
    weights = sorted(stage.model_dir.glob("*.safetensors"))
    return {
        "stage": stage.name,
        "directory": stage.directory.name,
        "inputs": stage.inputs,
        "seed": stage.inputs.get("seed", settings.seed),
        "started_at": f"{started_at:%Y-%m-%d %H:%M:%S} UTC",
        "finished_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "wall_s": time.perf_counter() - started,
        "work_s": outcome.work_s,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": _device(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "git_commit": _git_commit(),
        "weights_sha256": {path.name: sha256(path) for path in weights},
        "metrics": outcome.metrics,
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _git_commit() -> str | None:
    """The commit of this project's checkout, None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _quiet_libraries(stage: Stage) -> None:
    """Leave the terminal to our one progress line; the libraries' warnings go to a file beside the stage's metrics."""
    import datasets
    import transformers

    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.FileHandler(stage.directory / "warnings.log", delay=True))
    logging.getLogger("py.warnings").propagate = False

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


class _Terminated(Exception):
    """SIGTERM came while nothing was being trained."""


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent, so that a killed run leaves none behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _signals_passed_to(pid: int | None) -> Iterator[None]:
    def forward(signum: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or 0, signum)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
