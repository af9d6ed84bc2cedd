"""How processes that a launcher started agree; this process is the second of two, and the test plays the first."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, not re-exported

from gpt2_rlhf import building, pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.system_faults import AGAIN
from gpt2_rlhf.launch import world

WAITING = """
from gpt2_rlhf.config.system_faults import exit_with_one_line
from gpt2_rlhf.launch import world
import torch.distributed

def wait():
    print("waits", flush=True)
    with world.together():
        pass

exit_with_one_line(wait)
"""


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The store of a launcher on two nodes, alone in a list, so that a test can end it."""
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    numbers = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": server.port}
    for name, number in numbers.items():
        monkeypatch.setenv(name, str(number))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(world, "_agreements", iter(range(100)))
    monkeypatch.setattr(world.socket, "gethostname", lambda: "n2")
    world._store.cache_clear()
    holder = [server]
    del server
    yield holder
    world._store.cache_clear()


def as_first(launcher: list[Any], key: str, value: str) -> None:
    PrefixStore("gpt2-rlhf 0", launcher[0]).set(key, value)


def test_processes_agree_on_what_the_first_one_finds(launcher: list[Any]) -> None:
    as_first(launcher, "0", "theirs")
    as_first(launcher, "1", "")
    assert world.agree(lambda: "mine") == "theirs"
    assert world.agree(lambda: "mine") == ""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: 'abc' in the environment; expected a whole number of 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: '0' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: 2, with WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_PORT: '0' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"}, "WORLD_SIZE: 2 processes, but no MASTER_ADDR"),
    ],
)
def test_what_a_launcher_did_not_set_is_one_line(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        _ = world.rank(), world._store()
    assert str(refused.value).startswith(said)


def test_a_rank_that_no_launcher_set_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert world.rank() == 0


def test_a_process_alone_agrees_with_itself() -> None:
    assert world.agree(lambda: "mine") == "mine"


def test_a_process_that_waits_when_the_launcher_of_the_first_node_dies_ends_with_one_line(launcher: list[Any]) -> None:
    world._store()
    threading.Timer(0.3, launcher.clear).start()
    with pytest.raises(UserError) as ended:
        world.agree(lambda: "mine")
    assert str(ended.value) == (
        "process 1 of 2 on localhost, or its launcher, has ended, and says why there; the run ends in process 2 of 2 "
        "on n2; run the same command again to go on"
    )


def test_a_process_that_fails_ends_those_that_wait_for_it(launcher: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a defect"), world.together():
        raise ValueError("a defect")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"^process 2 of 2 on n2 has ended, .* in process 1 of 2 on n2; "):
        world.in_own_group("group 0", lambda: None)


def test_each_process_group_meets_at_a_port_of_its_own(launcher: list[Any]) -> None:
    def meet(key: str) -> str:
        found: list[str] = []
        opened = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        as_first(launcher, key, str(opened.port))
        as_first(launcher, f"{key} 0", "")
        world.in_own_group(key, lambda: found.append(world.os.environ["MASTER_PORT"]))
        assert found == [str(opened.port)]
        return found[0]

    assert meet("group 0") != meet("group 1")


def test_a_process_that_does_not_come_is_not_waited_for_without_end(
    launcher: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "_MEETING", world.timedelta(seconds=0.5))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"0:00:00\.5.* have passed and another process has not come in process 2 of 2"):
        world.in_own_group("group 0", lambda: None)
    assert time.monotonic() - started < 5


def test_a_node_with_other_settings_is_refused(launcher: list[Any]) -> None:
    planned = pipeline.plan(compose.load(["seed=1"]))
    (other,) = [stage for stage in pipeline.plan(compose.load(["seed=2"])).stages if stage.name == "sft"]
    as_first(launcher, "0", other.directory.name)
    with pytest.raises(UserError, match=rf"{other.directory.name}: not a stage of the run in process 2 of 2 on n2; "):
        building.missing_stages([planned])


def test_an_output_folder_that_the_nodes_do_not_share_is_refused(
    launcher: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(building, "_SEEN_WITHIN_S", 0.3)
    with pytest.raises(
        UserError, match=r"output_dir: .*stage is written, but not seen whole in process 2 of 2 on n2; "
    ):
        building._wait_until_seen(tmp_path / "stage", (tmp_path / "stage").exists)


@pytest.mark.parametrize(("on_this_node", "expected"), [(2, 4), (8, 1)])
def test_cores_are_divided_by_the_processes_of_this_node_not_of_all(
    monkeypatch: pytest.MonkeyPatch, on_this_node: int, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_node))
    monkeypatch.setattr(world, "cores", lambda: 8)
    assert world.places(1, None, 1)[0].threads == expected


@pytest.mark.parametrize(("on_this_node", "expected"), [(None, 4), ("2", 2), ("8", 4)])
def test_processes_on_this_machine_are_those_of_the_launcher_here_or_else_all(
    monkeypatch: pytest.MonkeyPatch, on_this_node: str | None, expected: int
) -> None:
    if on_this_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_node)
    assert world.on_this_machine(4) == expected


@pytest.mark.parametrize(("local_size", "expected"), [("2", " in process 2 of 2"), ("1", " in process 2 of 2 on n2")])
def test_a_message_names_the_node_if_there_are_several(
    launcher: list[Any], monkeypatch: pytest.MonkeyPatch, local_size: str, expected: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local_size)
    assert world.which() == expected


def test_each_process_logs_to_a_file_of_its_own() -> None:
    assert len({world.log_name("error", rank) for rank in range(3)}) == 3


def test_a_process_that_waits_for_the_launcher_of_the_first_node_stops_at_sigterm() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # nothing listens there
        nodes = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(reserved.getsockname()[1])}
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITING],
            env={**os.environ, **nodes, **store},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "waits\n"
            time.sleep(1)  # so that it is connecting
            waiting.terminate()
            _, said = waiting.communicate(timeout=10)
        finally:
            waiting.kill()
    assert waiting.returncode == 128 + signal.SIGTERM
    assert said == f"\nstopped by SIGTERM; {AGAIN}\n"
