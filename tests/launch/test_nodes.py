"""Two nodes on loopback: torchrun once for each, with one process each, and a store that both see."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from gpt2_rlhf.config.system_faults import AGAIN
from helpers.small_run import SMALL

REPOSITORY = Path(__file__).resolve().parents[2]
PPO = ("ppo.args.total_episodes=96", "ppo.args.save_steps=1")  # 3 updates of 2 x 16 episodes
ENDS_WITHIN_S = 60

pytestmark = pytest.mark.cluster


@dataclass
class Node:
    """One torchrun, and what its process prints."""

    run: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End this node without a word: torchrun, its process and the processes of stages."""
        for process in [psutil.Process(self.run.pid), *psutil.Process(self.run.pid).children(recursive=True)]:
            process.send_signal(signal.SIGKILL)
        self.run.wait()

    def printed(self) -> list[str]:
        """The lines of the process; torchrun logs with the file that says so.

        For example it says that the barrier at its exit failed, if the first node's torchrun ended just before.
        """
        lines = self.log.read_text().splitlines()
        return [line for line in lines if not re.match(r"[IWE]\d{4} .*/torch/distributed/elastic/\S+:\d+\] ", line)]

    def errors(self) -> list[str]:
        """The lines of ours; torchrun adds a report of its own."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]


def start(folder: Path, module: str, *launcher: str) -> list[Node]:
    """Start both nodes. launcher: options of torchrun that say where they meet."""
    nodes: list[Node] = []
    for rank in (0, 1):
        options = [f"--node-rank={rank}", *launcher] if "--rdzv-backend=c10d" not in launcher else launcher
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *options]
        command = [*torchrun, "-m", f"gpt2_rlhf.{module}", f"output_dir={folder / 'outputs'}", *SMALL, *PPO]
        log = folder / f"node{rank}.log"
        with log.open("w") as file:
            nodes.append(Node(subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file), log))
    return nodes


def static() -> tuple[str, str]:
    return "--master-addr=127.0.0.1", f"--master-port={free_port()}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(pattern: str, folder: Path, nodes: list[Node]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"outputs/stages/{pattern}")):
        assert all(node.run.poll() is None for node in nodes), nodes[0].log.read_text() + nodes[1].log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def weights(folder: Path) -> dict[str, str]:
    records = [json.loads((folder / "outputs/latest" / s / "manifest.json").read_text()) for s in STAGES]
    return {record["stage"]: record["weights_sha256"]["model.safetensors"] for record in records}


STAGES = ("sft", "reward", "judge", "ppo")


def test_two_nodes_train_to_the_weights_of_two_processes_also_after_one_was_killed(tmp_path: Path) -> None:
    together, nodes_folder = tmp_path / "together", tmp_path / "nodes"
    nodes_folder.mkdir()
    nodes = start(nodes_folder, "ppo", *static())
    wait_for("ppo-*/checkpoints/checkpoint-*/files.json", nodes_folder, nodes)
    nodes[1].kill()
    assert nodes[0].run.wait(ENDS_WITHIN_S) != 0
    (line,) = nodes[0].errors()
    assert line.startswith(f"error: ppo in process 1 of 2 on {socket.gethostname()} lost the connection to another")
    assert line.endswith("run the same command again to go on")

    again = start(nodes_folder, "ppo", *static())
    assert [node.run.wait(300) for node in again] == [0, 0], again[0].log.read_text() + again[1].log.read_text()
    assert "ppo goes on from step " in again[0].log.read_text()
    assert again[1].printed() == []  # the first process alone prints
    for stage in (nodes_folder / "outputs/stages").iterdir():
        assert not list(stage.glob("*-2.log")), "the second process logged what the first one did not"

    command = [sys.executable, "-m", "gpt2_rlhf", "ppo", f"output_dir={together / 'outputs'}", *SMALL, *PPO]
    subprocess.run([*command, "launch.processes=2"], cwd=REPOSITORY, check=True, timeout=300, capture_output=True)
    assert weights(nodes_folder) == weights(together)


def test_a_node_that_waits_ends_with_one_line_when_the_first_node_is_killed(tmp_path: Path) -> None:
    where = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--rdzv-id={os.getpid()}")
    nodes = start(tmp_path, "data", *where)
    wait_for("data-*", tmp_path, nodes)  # the second node waits for the data
    first = next(node for node in nodes if "building" in node.log.read_text())
    other = nodes[1 - nodes.index(first)]
    first.kill()
    assert other.run.wait(ENDS_WITHIN_S) != 0
    # the process notices that the first one is gone, or else its torchrun notices it before and sends it SIGTERM
    (line,) = [line for line in other.log.read_text().splitlines() if line.endswith(AGAIN)]
    assert re.match(r"error: process 1 of 2 on |(\w+ )?stopped by SIGTERM; ", line)
