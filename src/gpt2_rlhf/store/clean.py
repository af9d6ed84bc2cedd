"""Delete what unfinished stages left behind, or with `finished` all stages and runs. Running ones stay."""

import shutil
from pathlib import Path

from gpt2_rlhf.store import locks
from gpt2_rlhf.store.stage import Stage, is_done


def clean(output_dir: str, finished: bool) -> None:
    """Empty the stage store below output_dir, finished stages only where asked for, and print what was deleted."""
    root = Path(output_dir)
    for directory in sorted(p for p in (root / "stages").glob("*-*") if p.is_dir()):
        stage = Stage(directory.name.partition("-")[0], directory, {}, {})
        if is_done(stage) and not finished:
            continue
        if locks.is_held(stage):
            print(f"left {directory}: a run is building it")
            continue
        shutil.rmtree(directory)
        locks.lock_path(stage).unlink(missing_ok=True)
        print(f"deleted {directory}")
    if finished:
        shutil.rmtree(root / "runs", ignore_errors=True)
        (root / "latest").unlink(missing_ok=True)
