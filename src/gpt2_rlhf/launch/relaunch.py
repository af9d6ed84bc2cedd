"""Start the pipeline in several processes with accelerate's launcher, for a config file of the user's own."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.launch import world


def is_needed(launch: Launch) -> bool:
    """Whether the settings name a config file of accelerate and no launcher has started this process yet."""
    return launch.accelerate_config is not None and launch.processes > 1 and not world.is_started_by_launcher()


def relaunch(launch: Launch, verb: str, overrides: Sequence[str]) -> NoReturn:
    """Run the same command with `accelerate launch` in place of this process."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, world.cores() // launch.processes)))
    options = ["--config_file", str(launch.accelerate_config), "--num_processes", str(launch.processes)]
    module = ["-m", "gpt2_rlhf", verb, *overrides]
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *options, *module])
