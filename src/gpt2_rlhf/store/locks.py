"""Lock a stage's directory, so that two runs never build the same stage.

The system releases flock(2) when the last process that inherited it ends, however it ends. So a killed run leaves no
lock behind, and a stage's child process keeps the lock if only its parent is killed (the library filelock loses it).
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store.stage import Stage


@contextmanager
def held(stages: list[Stage]) -> Iterator[None]:
    """Hold the locks of these stages within the block.

    Raises:
        UserError: another run holds one; names it.
    """
    files: list[TextIO] = []
    try:
        for stage in stages:
            files.append(_lock(stage))
        yield
    finally:
        for file in files:
            file.close()


def is_held(stage: Stage) -> bool:
    """Whether another run is building the stage now."""
    try:
        _lock(stage).close()
    except UserError:
        return True
    return False


def lock_path(stage: Stage) -> Path:
    """Return the lock file beside the stage's directory; neither need exist."""
    return stage.directory.with_name(f"{stage.directory.name}.lock")


def _lock(stage: Stage) -> TextIO:
    path = lock_path(stage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"output_dir: {path.parent} cannot be written ({error.strerror}); set output_dir=<a folder of yours>"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise UserError(
            f"{stage.directory}: another run is building it ({holder}); wait for it, or set output_dir=<another folder>"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    file.flush()
    return file
