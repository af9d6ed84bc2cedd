"""Start the pipeline in several processes with torchrun's launcher or accelerate's.

`accelerate launch --cpu` starts one process whatever it is told (accelerate 1.15, commands/launch.py), so
`launch.processes` uses torchrun's.
"""

import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.launch import world


def is_needed(launch: Launch) -> bool:
    """Whether the settings ask for several processes and no launcher has started them yet."""
    return launch.processes > 1 and not world.is_started_by_launcher()


def relaunch(launch: Launch, verb: str, overrides: Sequence[str]) -> NoReturn:
    """Run the same command in `launch.processes` processes, and exit with the code of the first that failed."""
    count = launch.processes
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    module = ["-m", "gpt2_rlhf", verb, *overrides]
    if launch.accelerate_config is not None:
        options = ["--config_file", launch.accelerate_config, "--num_processes", str(count)]
        os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *options, *module])

    # the library behind torchrun, since the command prints a long report around our one line
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
