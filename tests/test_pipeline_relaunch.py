"""When accelerate's launcher takes the place of a command, and with what."""

import os
import sys
from dataclasses import replace

import pytest

from gpt2_rlhf import pipeline
from gpt2_rlhf.config.settings import Launch

LAUNCH = Launch(processes=2, threads=None, accelerate_config="ddp.yaml", sharded=False, slurm=None)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that took the place of this one."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: commands.append(arguments))
    return commands


def test_a_config_file_of_accelerate_replaces_the_command_by_its_launcher(called: list[list[str]]) -> None:
    pipeline._relaunch(LAUNCH, ["sft", "seed=1"])
    launcher = ["accelerate.commands.launch", "--config_file", "ddp.yaml", "--num_processes", "2"]
    assert called == [[sys.executable, "-m", *launcher, "-m", "gpt2_rlhf", "sft", "seed=1"]]


def test_a_process_that_the_launcher_has_started_does_not_start_it_again(
    called: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    pipeline._relaunch(LAUNCH, ["sft"])
    assert called == []


def test_processes_without_a_config_file_need_no_launcher(called: list[list[str]]) -> None:
    pipeline._relaunch(replace(LAUNCH, accelerate_config=None), ["sft"])
    assert called == []
