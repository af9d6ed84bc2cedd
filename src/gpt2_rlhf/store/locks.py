"""Keep two runs out of one stage directory, with a lock that dies with its holder.

flock(2) is released by the system when the last process that inherited it ends, however it ends, so a killed run
never leaves a stage locked, and a stage's child process goes on holding it should its parent be killed.
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
    """Hold the locks of these stages, or raise a UserError that names who holds one."""
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
    """The lock file beside the stage's directory, which may not exist yet."""
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
