"""A Slurm cluster of one node on this machine, for tests: munged, slurmctld and slurmd with a configuration of its own.

Run by tests, by root: Debian's slurmctld, slurmd, slurm-client and munge must be installed, as .ci/run does.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
FirstJobId={first_job}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""  # cred_expire: a requeued job waits that long; FirstJobId: a job's port follows from its id


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster within the block, and yield the environment with which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = {name: f"--{name}-file={folder / 'munge'}.{name}" for name in ("key", "log", "pid", "seed")}
    host = socket.gethostname().partition(".")[0]
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, node_port = one.getsockname()[1], other.getsockname()[1]
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(
            host=host,
            port=port,
            node_port=node_port,
            first_job=1 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
            folder=folder,
            cpus=os.cpu_count(),
            memory_mb=psutil.virtual_memory().total // 2**20 * 9 // 10,
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(config)}
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *names.values()],
        ["slurmctld", "-D", "-f", str(config)],
        ["slurmd", "-D", "-N", host, "-f", str(config)],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
            assert program is not None, f"{command[0]} is not installed; see .ci/run"
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemons.append(subprocess.Popen([program, *command[1:]], env=environment, stdout=out, stderr=out))
            if command[0] == "munged":
                _wait_until(lambda: (folder / "munge.socket").exists(), folder)
        _wait_until(lambda: _run(environment, "sinfo", "-h", "-o", "%t").strip() in ("idle", "mix", "alloc"), folder)
        yield environment
    finally:
        _run(environment, "scancel", "--user=root")  # daemons that end leave jobs running
        _wait_until(lambda: not _run(environment, "squeue", "--noheader"), folder)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _run(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _wait_until(condition: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "\n".join(path.read_text()[-2000:] for path in folder.glob("*.out"))
        time.sleep(0.2)
