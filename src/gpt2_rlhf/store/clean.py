"""Delete what killed runs left behind; after a question, also stages that no run shows, or all of them."""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import locks
from gpt2_rlhf.store.stage import NOT_BUILT, Stage, fault

_NOTHING = "nothing to delete"


def clean(output_dir: str) -> None:
    """Delete unfinished stages that no run is building, damaged ones that were set aside, and what killed runs left."""
    root, deleted = Path(output_dir), 0
    for stage in _stages(root):
        if locks.is_held(stage):
            print(f"left {stage.directory}: a run is building it")
            continue
        with locks.held([stage]):  # no run may start to build what is deleted here
            is_kept = fault(stage) != NOT_BUILT and not stage.name.startswith("damaged")
            deleted += delete(leftovers([stage.directory]) if is_kept else [stage.directory])
    deleted += delete([*leftovers(root.glob("runs/*")), *_half_written(root.glob(".*.part"))])
    if not deleted:
        print(_NOTHING)


def prune(output_dir: str) -> None:
    """Ask, and delete the finished stages that no run shows; a UserError if a run is at work, or nobody answers."""
    root = Path(output_dir)
    shown = {link.resolve() for link in root.glob("runs/*/*") if link.is_symlink()}
    done = (stage.directory for stage in _stages(root) if fault(stage) is None)
    _ask_and_delete([one for one in done if one.resolve() not in shown], root)


def clean_all(output_dir: str) -> None:
    """Ask, and delete all stages and runs; a UserError if a run is at work, or nobody answers."""
    root = Path(output_dir)
    names = ("latest", "sweeps", "runs", "jobs", "stages")
    places = [path for path in (root / name for name in names) if os.path.lexists(path)]
    _ask_and_delete(places, root)


def leftovers(directories: Iterable[Path]) -> list[Path]:
    """Return what a killed run left in directories of runs and finished stages: half-written files and checkpoints."""
    found: list[Path] = []
    for one in directories:
        if (one / "manifest.json").is_file():  # other folders of this name are the user's
            found += one.glob("checkpoints")
        found += _half_written(one.rglob(".*.part"))
    return found


def _half_written(files: Iterable[Path]) -> list[Path]:
    """Return those that a process, which has ended, was about to rename (store.files.unfinished)."""
    writers = ((path, re.fullmatch(r"\..+\.(\d+)\.part", path.name)) for path in files)
    return [path for path, writer in writers if writer is not None and not psutil.pid_exists(int(writer[1]))]


def _stages(root: Path) -> list[Stage]:
    """Return the stages that have a directory or, just begun, only a lock file."""
    directories = sorted({path.with_suffix("") for path in root.glob("stages/*-*")})
    return [Stage(directory.name.partition("-")[0], directory, {}, {}) for directory in directories]


def _ask_and_delete(paths: Sequence[Path], root: Path) -> None:
    for stage in _stages(root):
        if locks.is_held(stage):
            raise UserError(f"{stage.directory}: a run is building it, and may need what would be deleted; wait for it")
    if not paths:
        print(_NOTHING)
        return
    for path in paths:
        size = sum(file.lstat().st_size for file in [path, *path.rglob("*")] if not file.is_symlink())
        print(f"{size / 1e6:>12,.1f} MB  {path}")
    try:
        answer = input("Delete these? [y/N] ")
    except EOFError:
        raise UserError(
            "nothing was deleted: nobody answered y; in a script, put `echo y |` before the command"
        ) from None
    if answer.strip().lower() in ("y", "yes"):
        delete(paths)
    else:
        print("nothing was deleted")


def delete(paths: Iterable[Path]) -> int:
    """Delete files and folders, print each, and return how many they are."""
    existing = list(filter(os.path.lexists, paths))
    for path in existing:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        print(f"deleted {path}")
    return len(existing)
