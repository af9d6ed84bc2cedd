"""Delete what unfinished stages left behind; finished ones only when asked to with --all. Running ones stay."""

import fcntl
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2_rlhf import config
from gpt2_rlhf.errors import exit_with_one_line


def clean(argv: Sequence[str], finished: bool) -> None:
    """Empty the stage store under output_dir as far as asked, and print what went."""
    output_dir = Path(config.load(argv).output_dir)
    for directory in sorted(p for p in (output_dir / "stages").glob("*-*") if p.is_dir()):
        if (directory / "manifest.json").exists() and not finished:
            continue
        if _is_running(directory):
            print(f"left {directory}: a run is building it")
            continue
        shutil.rmtree(directory)
        directory.with_name(f"{directory.name}.lock").unlink(missing_ok=True)
        print(f"deleted {directory}")
    if finished:
        shutil.rmtree(output_dir / "runs", ignore_errors=True)
        (output_dir / "latest").unlink(missing_ok=True)


def _is_running(directory: Path) -> bool:
    lock = directory.with_name(f"{directory.name}.lock")
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


if __name__ == "__main__":
    everything = "--all" in sys.argv[1:]
    exit_with_one_line(lambda: clean([a for a in sys.argv[1:] if a != "--all"], everything))
