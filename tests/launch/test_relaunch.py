"""What several processes end in, with a stand-in for torchrun's launcher that starts none."""

import logging
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.launch import relaunch


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    logging.disable(logging.NOTSET)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def end(launched: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> object:
    """Relaunch with a launcher that does this once its processes run, and return the exit code."""
    monkeypatch.setattr(api, "elastic_launch", lambda config, program: lambda *arguments: launched())
    with pytest.raises(SystemExit) as stopped:
        relaunch.relaunch(Launch(processes=2, accelerate_config=None), "sft", ["seed=1"])
    return stopped.value.code


def fail(rank: int, exitcode: int) -> None:
    raise ChildFailedError("sft", {rank: ProcessFailure(rank, 123, exitcode, "")})


def test_a_killed_process_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(lambda: fail(1, -signal.SIGKILL), monkeypatch) == 137
    line = "error: process 2 of 2 ended by SIGKILL; run the same command again to go on\n"
    assert capsys.readouterr().err == line


def test_a_process_that_said_why_it_failed_gives_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(lambda: fail(0, 2), monkeypatch) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_announced_in_one_line_and_gives_the_code(
    signum: int, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert end(lambda: os.kill(os.getpid(), signum), monkeypatch) == code
    line = capfd.readouterr().err
    assert line.startswith(f"\n{signal.Signals(signum).name}: stopping 2 processes, after a checkpoint")
    assert line.count("\n") == 2
