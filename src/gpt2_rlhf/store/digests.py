"""Record the size and sha256 of each file of a folder, and find the files that are lost or damaged since.

A kill leaves half of a folder, a power cut empty files, a failing disk changed bytes. So a folder counts only with a
record of its files, which is written last, after everything in it was flushed to the disk.
"""

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store.files import read_json, sha256, unused, write_json

SEAL = "files.json"  # in a folder that was written to its end
_SMALL_BYTES = 16_000_000  # hashed in 10 ms

Record = Mapping[str, Mapping[str, Any]]  # path below the folder -> bytes, sha256


def record(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Flush these files of the folder to the disk, and return the record of them."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(paths):
        flush(path)
        found[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest(path)}
    for directory in [folder.parent, folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        flush(directory)
    return found


def fault(folder: Path, files: Record, recorded_at: float, read_all: bool) -> str | None:
    """Return what is wrong with the first lost or damaged file, or None.

    Existence and size are always compared. The content is, if `read_all`, if the file is small, or if it was written
    to after the time `recorded_at`.

    Raises:
        UserError: a file may not be read, which says nothing about its content.
    """
    for name, expected in files.items():
        path = folder / name
        try:
            found = path.stat()
            if found.st_size != expected["bytes"]:
                return f"{name} has {found.st_size} bytes, not {expected['bytes']}"
            is_read = read_all or found.st_size <= _SMALL_BYTES or found.st_mtime > recorded_at
            if is_read and digest(path) != expected["sha256"]:
                return f"the content of {name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def seal(folder: Path) -> None:
    """Write the record of all files of a folder into it."""
    (folder / SEAL).unlink(missing_ok=True)
    write_json(folder / SEAL, record(folder, (path for path in folder.rglob("*") if path.is_file())))
    flush(folder)


def seal_fault(folder: Path) -> str | None:
    """Return what is wrong with a folder that should have a seal, or None; every byte of it is read."""
    try:
        files = read_json(folder / SEAL)
        return fault(folder, files, 0.0, read_all=True) if files else f"{SEAL} is empty"
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{SEAL} is damaged"


def set_aside(path: Path) -> Path:
    """Rename a damaged folder so that nothing takes it for a whole one, and return its new place."""
    return path.rename(unused(path.with_name(f"damaged-{path.name}")))


def digest(path: Path) -> str:
    """Return a file's sha256, which each process computes once as long as the file stays the same."""
    found = path.stat()
    return _digest(path, found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _digest(path: Path, *_: int) -> str:
    return sha256(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can flush the names in a folder
            raise
    finally:
        os.close(descriptor)
