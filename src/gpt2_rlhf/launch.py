"""Start the pipeline in several processes, and what those processes need to know of each other.

torchrun and accelerate launch set RANK, WORLD_SIZE and MASTER_PORT. `accelerate launch --cpu` starts one process
whatever it is told (accelerate 1.15, commands/launch.py), so torchrun is what `launch.processes` uses.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from gpt2_rlhf import stage
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage

_POLL_S = 0.5


def rank() -> int:
    """This process's number, 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def processes(settings: Settings) -> int:
    """How many processes train: what a launcher has started, or what the settings ask for."""
    return int(os.environ.get("WORLD_SIZE", settings.launch.processes))


def is_wanted(settings: Settings) -> bool:
    """Whether the settings ask for several processes and no launcher has started them yet."""
    return settings.launch.processes > 1 and "WORLD_SIZE" not in os.environ


def relaunch(settings: Settings, argv: Sequence[str], last: str) -> NoReturn:
    """Run this same command in `launch.processes` processes, and exit as the first of them that failed did."""
    count = settings.launch.processes
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    module = ["-m", "gpt2_rlhf.pipeline", "--until", last, *argv]
    if settings.launch.accelerate_config is not None:
        options = ["--config_file", settings.launch.accelerate_config, "--num_processes", str(count)]
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *options, *module])

    # torchrun as a library: its report on a failed process would bury our one line
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*module)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    sys.exit(0)


def use_next_port() -> None:
    """Give a stage's process group a store of its own: keys of an earlier stage's group would mislead it."""
    if "MASTER_PORT" in os.environ:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def leave() -> None:
    """Make this process one that works alone, whatever started it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def wait_for(part: Stage) -> None:
    """Wait until the first process has finished a stage that it does alone; the launcher ends us if it fails."""
    while not stage.is_done(part):
        time.sleep(_POLL_S)
