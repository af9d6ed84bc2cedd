"""docs/course.md: every command runs, in few steps, and every figure is that of the run that docs/course.json names."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import course
from helpers import commands
from helpers.small_run import SMALL

EXPERIMENTS = course.experiments(course.COURSE.read_text(encoding="utf-8"))
RUNS = json.loads(course.COURSE.with_suffix(".json").read_text(encoding="utf-8"))


def test_there_are_ten_experiments_each_with_a_command_figures_and_a_folded_answer() -> None:
    assert list(EXPERIMENTS) == list(range(1, 11))
    for text in EXPERIMENTS.values():
        assert course.commands(text)
        assert course.FIGURE.search(text)
        assert "\nQuestion: " in text
        assert "<details><summary>Answer</summary>" in text


@pytest.mark.parametrize("number", EXPERIMENTS)
def test_each_figure_is_that_of_a_run_of_this_or_an_earlier_experiment(number: int) -> None:
    shown = course.FIGURE.findall(" ".join(EXPERIMENTS[number].split()))
    known = [value for run in RUNS if run["experiment"] <= number for value in run["figures"].values()]
    assert set(shown) <= set(known)


def test_each_training_command_is_named_with_its_run() -> None:
    named = [(run["experiment"], run["command"]) for run in RUNS]
    for number, text in EXPERIMENTS.items():
        for command in course.commands(text):
            assert "make show" in command or (number, command) in named


# also of a command that sets more rows
FEW_STEPS = (
    "sft.args.max_steps=6",
    "reward.args.max_steps=6",
    "ppo.args.total_episodes=32",
    "ppo.heldout.prompts=8",
    "evaluate.prompts=8",
)


@pytest.mark.slow
def test_every_command_runs_in_few_steps(tmp_path: Path) -> None:
    for text in EXPERIMENTS.values():
        for command in course.commands(text):
            make, verb, *overrides = shlex.split(command)
            assert make == "make"
            small = () if verb == "show" else (*SMALL, *FEW_STEPS)
            done = commands.run(verb, f"output_dir={tmp_path}", *small, *overrides)
            assert done.returncode == 0, command + done.stdout + done.stderr
