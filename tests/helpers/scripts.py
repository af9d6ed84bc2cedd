"""Run a helper of the tests as a script, in processes that share nothing with those of the tests."""

import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]


def run(
    script: Path, *arguments: str | Path, processes: int = 1, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script on one thread a process, under torchrun if it is to run in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    paths = [str(_TESTS.parent / "src"), str(_TESTS)]
    return subprocess.run(
        [sys.executable, *launcher, script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
