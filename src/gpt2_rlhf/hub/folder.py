"""The files of a folder that are pushed, and the room on disk for the copy that is downloaded back."""

import shutil
import tempfile
from pathlib import Path

from gpt2_rlhf.config.errors import UserError

_SPARE_BYTES = 100_000_000  # for what else writes to the disk in the meantime


def files_below(folder: Path, root: Path) -> list[str]:
    """Return the files to push, relative to the folder; not the hidden ones, which are half-written.

    Files may be links into the stage store. root: the output_dir of the run, which no link may leave.

    Raises:
        UserError: there is no such folder, it is empty, or a link leads to a folder or out of `root`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no finished model; run `make pipeline` first")
    found: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir():
            if path.is_symlink():
                raise UserError(f"{path}: a link to a folder cannot be pushed; put a copy of the folder in its place")
        elif not any(part.startswith(".") for part in name.parts):
            if not path.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{path}: it links to {path.resolve()}, outside of {root}; put a copy in its place")
            found.append(name.as_posix())
    if not found:
        raise UserError(f"{folder}: there is nothing to push; run `make pipeline` first")
    return found


def require_room(size_bytes: int) -> int:
    """Return the free bytes where the copy that is downloaded back will lie.

    Raises:
        UserError: they do not suffice.
    """
    place = tempfile.gettempdir()
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise UserError(
            f"{place}: {megabytes(free_bytes)} free, expected {megabytes(size_bytes + _SPARE_BYTES)} for the copy that "
            "is loaded back from the Hub; make room, or set TMPDIR to a larger disk"
        )
    return free_bytes


def megabytes(size_bytes: int) -> str:
    """Return a size as text."""
    return f"{size_bytes / 1e6:,.1f} MB"
