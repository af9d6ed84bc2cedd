"""Lock a stage's directory, so that two runs never build the same stage.

The system releases flock(2) when the last process that inherited it ends, however it ends. So a killed run leaves no
lock behind, and a stage's child process keeps the lock if only its parent is killed (the library filelock loses it).
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import say
from gpt2_rlhf.store.stage import Stage


@contextmanager
def held(stages: list[Stage]) -> Iterator[None]:
    """Hold the locks of these stages within the block, and delete their files at its end.

    Raises:
        UserError: another run holds one, which it names, or the folder cannot be written or locked.
    """
    if stages and (option := _local_only(stages[0].directory)) is not None:
        folder = stages[0].directory.parent
        say(f"{folder}: mounted with {option}, so locks hold on one node only; start one command at a time")
    with ExitStack() as stack:
        for stage in stages:
            _lock(stage, stack)
        yield


def is_held(stage: Stage) -> bool:
    """Whether another run is building the stage now. Writes nothing, so that a disk for reading only will do."""
    try:
        with lock_path(stage).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # others: no lock file, or no locks on this file system, without which no run builds
        return isinstance(error, BlockingIOError)
    return False


def lock_path(stage: Stage) -> Path:
    """Return the lock file beside the stage's directory; neither need exist."""
    return stage.directory.with_name(f"{stage.directory.name}.lock")


def _local_only(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Return the mount option because of which other nodes do not see locks on the disk of a path, or None."""
    if not mounts.is_file():
        return None
    found = [line.split()[1:4] for line in mounts.read_text(encoding="utf-8").splitlines()]
    here = [(place, kind, options) for place, kind, options in found if path.absolute().is_relative_to(place)]
    _, kind, options = max(here, key=lambda one: len(one[0]), default=("", "", ""))
    untrusted = {"nolock", "local_lock=all", "local_lock=flock"} if kind.startswith("nfs") else {"localflock"}
    return next((f"{kind} {option}" for option in options.split(",") if option in untrusted), None)


def _lock(stage: Stage, stack: ExitStack) -> None:
    """Hold the stage's lock until the stack is closed, which also deletes the lock file."""
    path = lock_path(stage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(path.open("a+b", buffering=0))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"{stage.directory}: another run is building it ({file.read().decode()}); wait for it, or set "
                "output_dir=<another folder>"
            ) from error
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
            return _lock(stage, stack)  # the run that held it has just deleted the file
        file.truncate(0)
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        stack.callback(path.unlink, missing_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir: {path.parent} cannot be written or locked ({error.strerror}); set output_dir=<another folder>"
        ) from error
