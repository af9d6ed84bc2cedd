"""Know which of several processes this one is, as torchrun, accelerate launch or `tasks` tell in the environment.

Processes that a launcher started, on one node or several, agree on what to do through the launcher's key-value store,
which is at MASTER_ADDR:MASTER_PORT as long as the launcher on the first node runs.
"""

import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import AGAIN

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # the last is Slurm's, before a job's time ends
_POLL_S = 0.2
_MEETING = timedelta(minutes=5)  # until each process has come to where all must be
_FAILED = "failed"
_UNSET = "unset it, or start with torchrun or accelerate launch, which set it"
_agreements = count()


@dataclass(frozen=True)
class Place:
    """Which process of a task this is, for `take`; a size of 1 leaves what a launcher has set."""

    rank: int
    size: int
    port: int  # where the processes of the task meet
    threads: int | None  # of the CPU; None leaves the libraries' choice


def places(processes: int, threads: int | None, at_once: int) -> list[Place]:
    """Return the places of the processes of a task, of which `at_once` run at once."""
    sharing = processes * at_once * _number("LOCAL_WORLD_SIZE", 1, least=1)
    if threads is None and sharing > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores() // sharing)
    port = _free_port() if processes > 1 else 0
    return [Place(rank, processes, port, threads) for rank in range(processes)]


def take(place: Place) -> None:
    """Make this process the one at this place."""
    if place.threads is not None:
        import torch  # not every task has imported it

        torch.set_num_threads(place.threads)
    if place.size > 1:
        numbers = {"RANK": place.rank, "WORLD_SIZE": place.size, "MASTER_PORT": place.port}
        numbers |= {"LOCAL_RANK": place.rank, "LOCAL_WORLD_SIZE": place.size}
        os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    if not is_started_by_launcher():
        return 0
    found = _number("RANK", 0, least=0)
    if found >= size(1):
        raise UserError(f"RANK: {found}, with WORLD_SIZE={size(1)}; {_UNSET}")
    return found


def size(asked: int) -> int:
    """Return how many processes train: those that a launcher started, or else the number in the settings."""
    return _number("WORLD_SIZE", asked, least=1)


def on_this_machine(processes: int) -> int:
    """Return how many of the processes that train are on this machine."""
    return min(processes, _number("LOCAL_WORLD_SIZE", processes, least=1))


def _number(name: str, default: int, least: int) -> int:
    """Return the number that a launcher has set in the environment; refuse what is none."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}: {text!r} in the environment; expected a whole number of {least} or more; {_UNSET}")
    return int(text)


def which() -> str:
    """Return the end of a name in messages: which of several processes this is, or nothing if it is alone."""
    return f" in process {rank() + 1} of {size(1)}{node()}" if size(1) > 1 else ""


def node() -> str:
    """Return " on NAME" if the processes are on several nodes, or nothing."""
    return "" if os.environ.get("LOCAL_WORLD_SIZE", str(size(1))) == str(size(1)) else f" on {socket.gethostname()}"


def speaks() -> bool:
    """Whether this process, the first on its node, prints what all processes there have in common."""
    return os.environ.get("LOCAL_RANK", str(rank())) == "0"


def log_name(name: str, rank: int) -> str:
    """Return the name of a log of which each process writes its own, since all may write to one shared folder."""
    return f"{name}.log" if rank == 0 else f"{name}-{rank + 1}.log"


def is_started_by_launcher() -> bool:
    """Whether torchrun or accelerate launch started this process."""
    return "WORLD_SIZE" in os.environ


def leave() -> None:
    """Make this process work alone, also if a launcher started it."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def agree(make: Callable[[], str]) -> str:
    """Return in every process what `make` returns in the first one; all must call this in the same order.

    Raises:
        UserError: as `wait_for`.
    """
    if size(1) == 1:
        return make()
    key = str(next(_agreements))
    if rank() == 0:
        found = make()
        with _connected():
            _store().set(key, found)
        return found
    wait_for(lambda: _store().check([key]))
    return _store().get(key).decode()


def wait_for(is_done: Callable[[], bool], limit_s: float = math.inf) -> bool:
    """Wait for what other processes do, and return whether it came within the limit.

    Raises:
        UserError: a process failed (`together`), or the first one or its launcher has ended.
    """
    deadline = time.monotonic() + limit_s
    with _connected():
        while not is_done():
            if time.monotonic() > deadline:
                return False
            if _store().check([_FAILED]):
                raise _ended(_store().get(_FAILED).decode())
            time.sleep(_POLL_S)
    return True


@contextmanager
def together() -> Iterator[None]:
    """Within the block, a failure of this process ends those that wait for it, on whatever node."""
    if size(1) == 1:
        yield
        return
    with _connected():
        _store()
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # the connection may be lost
            _store().set(_FAILED, which().removeprefix(" in "))
        raise


def in_own_group(key: str, action: Callable[[], None]) -> None:
    """Call `action`, whose process group meets at a port that the first process opens for it.

    key: the same in each process, and used once.
    The launcher's own store has the keys of earlier groups, and a fixed port might be in use.

    Raises:
        UserError: another process did not come.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, not re-exported

    server = None
    if rank() == 0:
        server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        _store().set(key, str(server.port))
    _store().set(f"{key} {rank()}", "")
    everyone = [key, *(f"{key} {one}" for one in range(size(1)))]
    if not wait_for(lambda: _store().check(everyone), _MEETING.total_seconds()):
        raise UserError(f"{_MEETING} have passed and another process has not come{which()}; {AGAIN}")
    os.environ["MASTER_PORT"] = _store().get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # each process connects to it, and none opens another
    action()
    del server


@contextmanager
def _connected() -> Iterator[None]:
    """Within the block, a lost connection to the first node is an error that says so."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise _ended(f"process 1 of {size(1)} on {os.environ['MASTER_ADDR']}, or its launcher,") from error


def _ended(other: str) -> UserError:
    return UserError(f"{other} has ended, and says why there; the run ends{which()}; {AGAIN}")


@cache
def _store() -> Any:
    """Connect to the launcher's store once; a forked process goes on with the connection while its parent waits."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, not re-exported

    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 0, least=1)
    if address is None:
        raise UserError(f"WORLD_SIZE: {size(1)} processes, but no MASTER_ADDR in the environment; {_UNSET}")
    opens = rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # a launcher without a store
    if not opens:
        _wait_for_port(address, port)
    store = TCPStore(address, port, is_master=opens, wait_for_workers=False, timeout=_MEETING)
    return PrefixStore(f"gpt2-rlhf {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _wait_for_port(address: str, port: int) -> None:
    """Wait until something listens there, or for `_MEETING`; TCPStore waits too, but deaf to Ctrl-C and SIGTERM."""
    deadline = time.monotonic() + _MEETING.total_seconds()
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((address, port), timeout=_POLL_S * 10):
            return
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
