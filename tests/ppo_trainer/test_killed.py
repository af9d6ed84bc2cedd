import json
from pathlib import Path

import pytest

from helpers import commands, ppo_killed


@pytest.mark.slow
def test_runs_killed_at_random_updates_end_with_the_same_weights_as_uninterrupted_ones(tmp_path: Path) -> None:
    done = commands.call(ppo_killed.main, tmp_path, 20261124)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert [one["kind"] for one in found] == ["full", "lora", "two processes", "two processes with shares"]
    for one in found:
        assert len(one["killed_at"]) == (2 if "shares" in one["kind"] else 5)
        assert len(set(one["resumed_from"])) > 1, one  # it resumed, and did not start from 0 each time
        assert one["killed"] == one["straight"], one
    assert len({one["straight"] for one in found[:3]}) == 3
