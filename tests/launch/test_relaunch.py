"""When accelerate's launcher takes the place of a command, and with what."""

import os
import sys

import pytest

from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.launch import relaunch

LAUNCH = Launch(processes=2, threads=None, accelerate_config="ddp.yaml", sharded=False, slurm=None)


def test_a_config_file_of_accelerate_replaces_the_command_by_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append(arguments))
    relaunch.relaunch(LAUNCH, "sft", ["seed=1"])
    launcher = ["accelerate.commands.launch", "--config_file", "ddp.yaml", "--num_processes", "2"]
    assert called == [[sys.executable, "-m", *launcher, "-m", "gpt2_rlhf", "sft", "seed=1"]]


def test_a_process_that_the_launcher_has_started_does_not_start_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relaunch.is_needed(LAUNCH)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not relaunch.is_needed(LAUNCH)


def test_processes_without_a_config_file_need_no_launcher() -> None:
    assert not relaunch.is_needed(Launch(processes=2, threads=None, accelerate_config=None, sharded=False, slurm=None))
