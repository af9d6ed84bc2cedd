"""Know which of several processes this one is, as torchrun and accelerate launch tell in RANK and WORLD_SIZE."""

import os
import time
from collections.abc import Callable

_POLL_S = 0.5


def rank() -> int:
    """This process's number, 0 where there is one."""
    return int(os.environ.get("RANK", "0"))


def size(asked: int) -> int:
    """How many processes train: what a launcher has started, or else the number that the settings ask for."""
    return int(os.environ.get("WORLD_SIZE", asked))


def is_started_by_launcher() -> bool:
    """Whether torchrun or accelerate launch started this process."""
    return "WORLD_SIZE" in os.environ


def use_next_port() -> None:
    """Give a stage's process group a store of its own: keys of an earlier stage's group would mislead it."""
    if "MASTER_PORT" in os.environ:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def leave() -> None:
    """Make this process one that works alone, whatever started it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def wait_for(is_done: Callable[[], bool]) -> None:
    """Wait until the first process has finished what it does alone; the launcher ends this process if it fails."""
    while not is_done():
        time.sleep(_POLL_S)
