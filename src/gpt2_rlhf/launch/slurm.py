"""Run tasks as jobs of a Slurm cluster, each after those that it needs, and wait for them.

submitit writes the batch script and hands the task over. A job whose time ends gets SIGUSR2: the stage writes a
checkpoint, the job is requeued and goes on from it. Beside the directory of a task is a file with the id of its job, so
that the same command finds jobs that wait or run, and submits none twice.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Launch
from gpt2_rlhf.config.system_faults import exit_with_one_line, say
from gpt2_rlhf.launch import child, world
from gpt2_rlhf.launch.progress_line import LINE_EVERY_S
from gpt2_rlhf.launch.tasks import Task
from gpt2_rlhf.store.files import read_json, write_json

_POLL_S = 2.0
_PATIENCE_S = 60.0  # for a job that squeue does not know yet, or a result that a network disk does not show yet
_ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "STOPPED", "RESIZING")
_STOPPED = tuple(128 + signum for signum in world.STOPS)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_EXPECTED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "partition": ("a name or null", lambda value: value is None or isinstance(value, str)),
    "account": ("a name or null", lambda value: value is None or isinstance(value, str)),
    "time": ('minutes, or a text such as "04:00:00" or "1-12:00:00"', lambda value: _minutes(value) > 0),
    "nodes": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "gpus_per_node": ("a whole number of 0 or more", lambda value: type(value) is int and value >= 0),
    "cpus_per_task": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "mem_gb": ("a number above 0 or null", lambda value: value is None or (type(value) in (int, float) and value > 0)),
    "signal_delay_s": ("a whole number of 1 or more", lambda value: type(value) is int and value > 0),
    "parameters": ("options of sbatch, such as {qos: high}", lambda value: isinstance(value, dict)),
}


@dataclass(frozen=True)
class State:
    """A job as squeue shows it: its state, why it waits or ended so, and its nodes."""

    job: str
    state: str
    reason: str
    nodes: str

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else f" ({self.reason})" if self.reason != "None" else ""
        return f"job {self.job} {self.state.lower()}{where}"


def check(launch: Launch) -> None:
    """Refuse settings that no job could use, and a machine that cannot submit one.

    Raises:
        UserError: the first fault found.
    """
    given = launch.slurm or {}
    if missing := [name for name in _EXPECTED if name not in given]:
        raise UserError(f"launch.slurm: no value for {', '.join(missing)}; choose launch=slurm, which has them all")
    for name, (expected, is_valid) in _EXPECTED.items():
        if not is_valid(given[name]):
            raise UserError(f"launch.slurm.{name}: {given[name]}; expected {expected}")
    if launch.processes % given["nodes"] != 0:
        raise UserError(
            f"launch.slurm.nodes: {given['nodes']} does not divide launch.processes, {launch.processes}; change either"
        )
    if find_spec("submitit") is None:
        raise UserError("launch=slurm: submitit is not installed; run pip install 'gpt2-rlhf[slurm]'")
    for command in ("sbatch", "squeue", "srun", "scontrol"):
        if shutil.which(command) is None:
            raise UserError(f"launch=slurm: {command} is not found here; start it where Slurm's commands are")


def run_all(
    tasks: Sequence[Task],
    launch: Launch,
    is_done: Callable[[Task], bool],
    on_done: Callable[[Task], None],
) -> dict[Path, int]:
    """Submit each task as a job that begins when those that it needs have ended well, and wait for all.

    A task whose job waits or runs already is not submitted again. Of a job that failed one line is printed.

    Returns:
        0 for each directory whose task is done, 1 for the others.

    Raises:
        UserError: Slurm refuses a job.
        SystemExit: Ctrl-C came; the jobs go on.
    """
    jobs: dict[Path, str] = {}
    codes: dict[Path, int] = {}
    try:
        for task in tasks:
            needs = [jobs[need] for need in sorted(task.needs) if need in jobs]
            found = queued(task.directory) or _submit(task, launch, needs)
            jobs[task.directory] = found.job
            print(f"{task.name}: {found}; its log is {_log(task.directory)}", flush=True)
        _wait(tasks, jobs, codes, is_done, on_done)
    except KeyboardInterrupt:
        left = [job for directory, job in jobs.items() if directory not in codes]
        say(
            "\nthe jobs go on: `make status` with the same settings shows them, the same command waits for them again, "
            f"and `scancel {' '.join(left)}` cancels them"
        )
        raise SystemExit(128 + signal.SIGINT) from None
    return codes


def _wait(
    tasks: Sequence[Task],
    jobs: Mapping[Path, str],
    codes: dict[Path, int],
    is_done: Callable[[Task], bool],
    on_done: Callable[[Task], None],
) -> None:
    shown: dict[Path, str] = {}  # the newest state that was printed
    seen, printed = (dict.fromkeys(jobs, time.monotonic()) for _ in range(2))
    answers = True
    while len(codes) < len(tasks):
        states = _states()
        if states is None and answers:
            say("squeue fails, so this waits until Slurm answers again; jobs go on meanwhile")
        answers = states is not None
        for task in tasks:
            directory = task.directory
            if states is None or directory in codes:
                continue
            found = states.get(jobs[directory])
            if found is not None and found.state in _ACTIVE:
                seen[directory] = time.monotonic()
                if found.state != shown.get(directory, "PENDING"):
                    print(f"{task.name}: {found}", flush=True)
                    printed[directory] = seen[directory]
                elif found.state == "RUNNING" and seen[directory] - printed[directory] >= LINE_EVERY_S:
                    print(f"  {child.last_line(_log(directory)).strip() or f'{task.name} starts'}", flush=True)
                    printed[directory] = seen[directory]
                shown[directory] = found.state
            elif is_done(task):
                codes[directory] = 0
                on_done(task)
            elif (
                time.monotonic() - seen[directory] > _PATIENCE_S
                or (found is not None and found.state != "COMPLETED")  # else its result may still be on its way
            ):
                codes[directory] = 1
                say(f"error: {task.name}: {_why(task, jobs[directory], found)}")
        time.sleep(_POLL_S)


def _why(task: Task, job: str, found: State | None) -> str:
    log = _log(task.directory)
    state = "ended" if found is None else found.state.lower()
    try:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    except OSError:
        lines = []
    said = f": {lines[-1].removeprefix('error: ')}" if lines else ""
    if found is not None and found.state == "CANCELLED" and not log.exists():
        said = ": a stage that it needs failed, or it was cancelled"
    return f"job {job} {state}{said} (log: {log})"


def queued(directory: Path) -> State | None:
    """Return the state of the job of a task if it waits or runs."""
    record = _record(directory)
    found = (_states() or {}).get(record["job"]) if record else None
    return found if found is not None and found.state in _ACTIVE else None


def _record(directory: Path) -> dict[str, Any]:
    try:
        return read_json(_record_path(directory))
    except (OSError, ValueError):
        return {}


def _record_path(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.job")


def _log(directory: Path) -> Path:
    return Path(_record(directory).get("log", ""))


def _states() -> dict[str, State] | None:
    """Return the jobs of this user that wait, run or ended a moment ago; None if Slurm does not answer."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%r|%N"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        return None
    return {line.split("|")[0]: State(*line.split("|")) for line in found.stdout.splitlines() if line.count("|") == 3}


def _submit(task: Task, launch: Launch, needs: Sequence[str]) -> State:
    """Submit a task, write its record, and return the state of its job."""
    import submitit
    from submitit.core.utils import FailedJobError

    chosen = launch.slurm or {}
    nodes = min(chosen["nodes"], task.processes)
    folder = task.directory.parent.with_name("jobs") / task.directory.name
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(
        job_name=task.directory.name,
        time=_minutes(chosen["time"]),
        nodes=nodes,
        ntasks_per_node=task.processes // nodes,
        cpus_per_task=chosen["cpus_per_task"],
        signal_delay_s=chosen["signal_delay_s"],
        stderr_to_stdout=True,
        srun_args=["--kill-on-bad-exit=1"],  # or the others would wait for one that failed
        additional_parameters={
            "requeue": True,
            "kill-on-invalid-dep": "yes",
            **({"dependency": f"afterok:{':'.join(needs)}"} if needs else {}),
            **({"mem": f"{int(chosen['mem_gb'] * 1024)}M"} if chosen["mem_gb"] else {}),
            **({"gpus-per-node": chosen["gpus_per_node"]} if chosen["gpus_per_node"] else {}),
            **{name: chosen[name] for name in ("partition", "account") if chosen[name]},
            **chosen["parameters"],
        },
    )
    threads = launch.threads or chosen["cpus_per_task"]
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it raises
            job = executor.submit(work, task, threads)
    except (FailedJobError, subprocess.CalledProcessError) as error:
        said = (str(error).splitlines() or [""])[-1].removeprefix("sbatch: error: ")
        raise UserError(f"launch.slurm: Slurm refuses the job of {task.name}: {said}") from error
    write_json(_record_path(task.directory), {"job": job.job_id, "log": str(job.paths.stdout)})
    return State(job.job_id, "PENDING", "None", "")


def work(task: Task, threads: int) -> None:
    """Run a task as one of the processes of a job; after Slurm's signal, have the job requeued."""
    if task.processes > 1:
        from submitit.helpers import TorchDistributedEnvironment

        port = 15000 + int(os.environ["SLURM_JOB_ID"]) % 15000  # below those that systems give
        os.environ["MASTER_PORT"] = str(port)
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    before = _checkpoints(task)
    for signum in world.STOPS:  # submitit's own handlers would ignore one that comes during the imports
        signal.signal(signum, lambda number, _frame: sys.exit(128 + number))
    try:
        exit_with_one_line(task.action)
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGUSR2 and world.rank() == 0:
            if _checkpoints(task) == before:
                say(
                    f"error: {task.name}: the time of the job ended before the first checkpoint; raise "
                    "launch.slurm.time or launch.slurm.signal_delay_s"
                )
                raise SystemExit(2) from ended
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        if ended.code == 128 + signal.SIGUSR2 or (world.rank() > 0 and ended.code in _STOPPED):
            time.sleep(_PATIENCE_S)  # Slurm ends this process; if it ended first, srun would kill the first process
        raise


def _checkpoints(task: Task) -> set[tuple[str, float]]:
    return {(path.name, path.stat().st_mtime) for path in task.directory.glob("checkpoints/*/*.json")}


def _minutes(value: Any) -> int:
    """Return the minutes of a time as sbatch writes it, rounded up, or 0 if it is none."""
    if type(value) is int:  # not a bool
        return value
    found = _TIME.fullmatch(str(value))
    if found is None:
        return 0
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # minutes, or minutes:seconds
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return -(-((int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds) // 60)
