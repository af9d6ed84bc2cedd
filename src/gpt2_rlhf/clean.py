"""Delete what unfinished stages left behind; finished ones only when asked to with --all. Running ones stay."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2_rlhf import config, locks
from gpt2_rlhf.errors import exit_with_one_line
from gpt2_rlhf.stage import Stage


def clean(argv: Sequence[str], finished: bool) -> None:
    """Empty the stage store under output_dir as far as asked, and print what went."""
    output_dir = Path(config.load(argv).output_dir)
    for directory in sorted(p for p in (output_dir / "stages").glob("*-*") if p.is_dir()):
        if (directory / "manifest.json").exists() and not finished:
            continue
        part = Stage(directory.name.partition("-")[0], directory, {}, {})
        if locks.is_held(part):
            print(f"left {directory}: a run is building it")
            continue
        shutil.rmtree(directory)
        locks.lock_path(part).unlink(missing_ok=True)
        print(f"deleted {directory}")
    if finished:
        shutil.rmtree(output_dir / "runs", ignore_errors=True)
        (output_dir / "latest").unlink(missing_ok=True)


if __name__ == "__main__":
    everything = "--all" in sys.argv[1:]
    exit_with_one_line(lambda: clean([a for a in sys.argv[1:] if a != "--all"], everything))
