import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "ppo_alone.py"


def test_ppo_alone_raises_its_reward_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    *updates, last = done.stdout.splitlines()
    scores = [float(score) for score in re.findall(r"^update +\d+: (\S+) times good per answer$", done.stdout, re.M)]
    assert len(scores) == len(updates) == 12
    assert sum(scores[-3:]) > 2 * sum(scores[:3])
    assert last == "resumed from checkpoint-6: the weights are the same"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-12", "checkpoint-6"]
