"""A sweep as a user runs it, in processes of its own, on the bundled model and few rows."""

import json
import time
from pathlib import Path

import pytest

from helpers import commands
from helpers.commands import Command
from helpers.small_run import SMALL, copy_stages

NO_JUDGE = "data.shares={sft: 0.2, reward: 0.6, judge: 0, ppo: 0.2}"
PAIRS = "data.train_pairs=240"  # with fewer, a point that trains may be no better than one that the guard stopped
ARGUMENTS = ("sweep.parallel=2", "ppo.args.kl_coef=0.05,0.1", "ppo.args.learning_rate=3e-4,1e30", NO_JUDGE)

pytestmark = pytest.mark.slow


def start(output_dir: Path, *arguments: str, verb: str = "sweep") -> Command:
    small = [PAIRS, *(one for one in SMALL if not one.startswith(("data.shares", "data.train_pairs")))]
    return commands.start(verb, f"output_dir={output_dir}", *small, *arguments)


def trained(output_dir: Path, stage: str) -> dict[str, float]:
    """When each stage of this name was finished, by directory."""
    return {path.parent.name: path.stat().st_mtime for path in output_dir.glob(f"stages/{stage}-*/manifest.json")}


def test_a_killed_sweep_goes_on_shares_stages_and_then_trains_nothing(tmp_path: Path) -> None:
    killed = start(tmp_path, *ARGUMENTS)
    deadline = time.monotonic() + 200
    while len(trained(tmp_path, "ppo")) < 1:
        assert killed.poll() is None, killed.wait().stdout
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    before = {name: trained(tmp_path, name) for name in ("sft", "reward", "ppo")}
    assert len(before["ppo"]) < 4

    done = start(tmp_path, *ARGUMENTS).wait()
    printed = done.stdout
    assert done.returncode == 0, printed
    after = {name: trained(tmp_path, name) for name in ("sft", "reward", "ppo", "evaluate")}
    assert [len(after[name]) for name in ("sft", "reward", "ppo", "evaluate")] == [1, 1, 4, 4]
    assert before["sft"] == after["sft"]
    assert before["ppo"].items() <= after["ppo"].items()
    (figures,) = tmp_path.glob("sweeps/*/sweep.json")
    points = json.loads(figures.read_text())["points"]
    assert [one["label"] for one in points] == [
        "kl_coef=0.05 learning_rate=0.0003",
        "kl_coef=0.05 learning_rate=1e+30",
        "kl_coef=0.1 learning_rate=0.0003",
        "kl_coef=0.1 learning_rate=1e+30",
    ]

    # the guard hands on the best policy before, which may be the best of all points
    states = [one["state"].removeprefix("best; ") for one in points if "1e+30" in one["label"]]
    assert [state.partition(":")[0] for state in states] == ["stopped by the guard"] * 2

    again = start(tmp_path, "--multirun", *ARGUMENTS, verb="pipeline").wait()
    printed = again.stdout
    assert again.returncode == 0, printed
    assert {name: trained(tmp_path, name) for name in after} == after
    assert "building" not in printed
    assert json.loads(figures.read_text())["points"] == points


@pytest.fixture(scope="module")
def of_methods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of a finished sweep over two methods, and what the sweep printed."""
    output_dir = tmp_path_factory.mktemp("methods")
    run = start(output_dir, "method=rloo,dpo", NO_JUDGE).wait()
    assert run.returncode == 0, run.stdout
    return output_dir, run.stdout


def test_methods_are_points_that_share_all_before_the_policy_and_a_run_of_each_has_its_card(
    of_methods: tuple[Path, str],
) -> None:
    output_dir, printed = of_methods
    names = ("sft", "reward", "rloo", "dpo", "evaluate")
    assert [len(trained(output_dir, name)) for name in names] == [1, 1, 1, 1, 2]
    for row in ("Tokens sampled: RLOO", "Pairs learnt from: DPO", "best of n"):
        assert row in printed

    shown = start(output_dir, "method=dpo", NO_JUDGE, verb="pipeline").wait()
    printed = shown.stdout
    assert shown.returncode == 0, printed
    assert "building" not in printed
    card = (output_dir / "latest" / "model" / "README.md").read_text()
    assert "SFT, then the reward model from it, then DPO from SFT |" in card
    assert (output_dir / "latest" / "report" / "curves-dpo.png").stat().st_size > 0


def test_a_point_that_fails_is_a_row_and_the_others_go_on(
    of_methods: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_stages(of_methods[0], tmp_path / "outputs", "data", "sft", "reward")
    (tmp_path / "no_scores.py").write_text("def score(prompts, answers):\n    return []\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    functions = "ppo.reward.function=null,no_scores:score"
    run = start(tmp_path / "outputs", functions, "ppo.reward.normalise=false", NO_JUDGE).wait()
    printed = run.stdout
    assert run.returncode == 0, printed
    assert "1: function=null" in printed
    assert "2: function=no_scores:score  failed: " in printed
    assert "1 of 2 points have figures" in printed
