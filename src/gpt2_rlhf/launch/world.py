"""Know which of several processes this one is, as torchrun and accelerate launch tell in RANK and WORLD_SIZE."""

import os
import time
from collections.abc import Callable

_POLL_S = 0.5


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def size(asked: int) -> int:
    """Return how many processes train: those that a launcher started, or else the number in the settings."""
    return int(os.environ.get("WORLD_SIZE", asked))


def which() -> str:
    """Return the end of a name in messages: which of several processes this is, or nothing if it is alone."""
    return f" in process {rank() + 1} of {size(1)}" if size(1) > 1 else ""


def is_started_by_launcher() -> bool:
    """Whether torchrun or accelerate launch started this process."""
    return "WORLD_SIZE" in os.environ


def use_next_port() -> None:
    """Give the process group of the next stage a store of its own, apart from the keys of earlier groups."""
    if "MASTER_PORT" in os.environ:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)


def leave() -> None:
    """Make this process work alone, also if a launcher started it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def wait_for(is_done: Callable[[], bool]) -> None:
    """Wait until the first process has finished what it does alone; the launcher ends this process if it fails."""
    while not is_done():
        time.sleep(_POLL_S)
