"""Know which of several processes this one is, as torchrun, accelerate launch or `tasks` tell in the environment."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

_POLL_S = 0.5
_SIDE_BY_SIDE = "GPT2_RLHF_SIDE_BY_SIDE"  # set if another task writes to the same terminal


@dataclass(frozen=True)
class Place:
    """Which process of a task this is, for `take`; a size of 1 leaves what a launcher has set."""

    rank: int
    size: int
    port: int  # where the processes of the task meet
    threads: int | None  # of the CPU; None leaves the libraries' choice
    is_side_by_side: bool


def places(processes: int, threads: int | None, at_once: int) -> list[Place]:
    """Return the places of the processes of a task, of which `at_once` run at once."""
    sharing = processes * at_once
    if threads is None and sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores() // sharing)
    port = _free_port() if processes > 1 else 0
    return [Place(rank, processes, port, threads, at_once > 1) for rank in range(processes)]


def take(place: Place) -> None:
    """Make this process the one at this place."""
    if place.threads is not None:
        import torch  # not every task has imported it

        torch.set_num_threads(place.threads)
    if place.is_side_by_side:
        os.environ[_SIDE_BY_SIDE] = "1"
    if place.size > 1:
        numbers = {"RANK": place.rank, "WORLD_SIZE": place.size, "MASTER_PORT": place.port}
        numbers |= {"LOCAL_RANK": place.rank, "LOCAL_WORLD_SIZE": place.size}
        os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def task_name(default: str) -> str:
    """Return what messages call the task that this process works on; `default` in a process of its own."""
    process = multiprocessing.current_process()
    return default if process.name == "MainProcess" else process.name


def is_side_by_side() -> bool:
    """Whether another task may print while this one does."""
    return _SIDE_BY_SIDE in os.environ


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


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
