"""Write and name files so that a reader never meets half of one."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from gpt2_rlhf.config.errors import UserError


def unfinished(path: Path) -> Path:
    """Return the name under which this process writes what will replace `path`; store.clean knows it by this form."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def unused(path: Path) -> Path:
    """Return the path, or the first of PATH-2, PATH-3 and so on that does not exist if it does."""
    names = chain([path.name], (f"{path.name}-{number}" for number in count(2)))
    return next(one for name in names if not os.path.lexists(one := path.with_name(name)))


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file to write that replaces `path` when the block ends, and not if it raises.

    A reader sees the old file or the whole new one, also after a power cut: the content is flushed to the disk before
    one rename. mode: "w" for UTF-8 text, "wb" for bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = unfinished(path)
    try:
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.filename is None or Path(error.filename) == part:  # a failed write names no file
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by this content as indented JSON."""
    with replacing(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON lines file."""
    with path.open(encoding="utf-8") as lines:  # not str.splitlines, which also splits at separators inside strings
        return [json.loads(line) for line in lines]


def link(link: Path, target: Path) -> None:
    """Point a symbolic link at a target relative to it, by one rename; one that does so already is left alone.

    Raises:
        UserError: a folder is in its place.
    """
    if link.is_symlink() and link.readlink() == target:
        return
    if link.is_dir() and not link.is_symlink():
        raise UserError(
            f"{link}: a folder, as `cp -rL` makes it; expected a link; delete it (the folder `stages` has all that is "
            "in it), then run the same command again"
        )
    part = unfinished(link)
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target)
        part.replace(link)
    finally:
        part.unlink(missing_ok=True)


def content_sha256(content: Any) -> str:
    """Return the hex digest of the canonical JSON of a content."""
    as_json = json.loads(json.dumps(content))  # keys become text before they are sorted
    return hashlib.sha256(json.dumps(as_json, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
