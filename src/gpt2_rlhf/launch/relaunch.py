"""Start the pipeline in several processes with torchrun's launcher or accelerate's.

`accelerate launch --cpu` starts one process whatever it is told (accelerate 1.15, commands/launch.py), so
`launch.processes` uses torchrun's.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.config.system_faults import AGAIN, say
from gpt2_rlhf.launch import child, world

_STOP_S = 120  # for the step and the checkpoint after Ctrl-C; then the processes are killed


def is_needed(launch: Launch) -> bool:
    """Whether the settings ask for several processes and no launcher has started them yet."""
    return launch.processes > 1 and not world.is_started_by_launcher()


def relaunch(launch: Launch, verb: str, overrides: Sequence[str]) -> NoReturn:
    """Run the same command in `launch.processes` processes, and exit with the code of the first that failed.

    Ctrl-C and SIGTERM go to all of them, which save a checkpoint if they train; a second Ctrl-C kills them.
    """
    count = launch.processes
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    module = ["-m", "gpt2_rlhf", verb, *overrides]
    if launch.accelerate_config is not None:
        options = ["--config_file", launch.accelerate_config, "--num_processes", str(count)]
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *options, *module])

    # the library behind torchrun, since the command prints a long report around our one line
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=_STOP_S,
        signals_to_handle="SIGQUIT",  # those of its handlers that are not replaced below
    )
    received: list[int] = []

    def stop(signum: int, frame: FrameType | None) -> None:
        if signum in received and signum == signal.SIGINT:
            os._exit(128 + signum)  # the processes die with this one
        received.append(signum)
        child.announce_stop(signum, f"{count} processes")
        raise SignalException(signal.Signals(signum).name, signal.Signals(signum))

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        elastic_launch(config, sys.executable)(*module)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)  # it has said why
        name = signal.Signals(-failure.exitcode).name
        say(f"error: process {rank + 1} of {count} ended by {name}; {AGAIN}")
        sys.exit(128 - failure.exitcode)
    sys.exit(0)
