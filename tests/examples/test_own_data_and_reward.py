"""The pairs and the reward function of examples/, used as their texts say: by the command line, from the repository."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2_rlhf.config import functions
from helpers import commands
from helpers.commands import REPOSITORY
from helpers.small_run import SMALL

PAIRS = "examples/own_pairs.jsonl"
FUNCTION = "examples.custom_reward:score"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run up to PPO with both."""
    folder = tmp_path_factory.mktemp("own") / "outputs"
    own = ["model=embedded", "data=hh_rlhf", f"data.path={PAIRS}", f"ppo.reward.function={FUNCTION}"]
    done = commands.run("ppo", f"output_dir={folder}", *own, *SMALL[3:])  # all of the pairs
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def metrics(outputs: Path, stage: str) -> dict[str, Any]:
    return json.loads((outputs / "latest" / stage / "manifest.json").read_text(encoding="utf-8"))["metrics"]


def test_every_pair_of_the_example_can_be_used(outputs: Path) -> None:
    lines = (REPOSITORY / PAIRS).read_text(encoding="utf-8").splitlines()
    found = metrics(outputs, "data")
    assert found["train"]["kept"] + found["test"]["kept"] == len(lines) >= 200
    pairs = [json.loads(line) for line in lines]
    assert len({one["prompt"] for one in pairs}) == len(pairs)
    assert all(one["chosen"].endswith("?") and not one["rejected"].endswith("?") for one in pairs)


def test_what_is_measured_as_reward_is_the_score_of_the_function(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    score = functions.load_score_function(FUNCTION)
    assert score is not None
    words = " ".join(f"word{number}" for number in range(12))
    assert score([""] * 4, [words, f"{words} and {words}", "word " * 12, ""]) == pytest.approx(
        [1, 1 - 13 / 12 - 12 / 25, 1 - 11 / 12, 1 - 1 - 1]
    )
    files = sorted((outputs / "latest" / "ppo" / "heldout").iterdir())
    measured = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
    assert len(measured) > 5
    expected = score([one["prompt"] for one in measured], [one["answer"] for one in measured])
    assert [one["reward"] for one in measured] == pytest.approx(expected, abs=1e-6)
