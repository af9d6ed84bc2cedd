"""Stages as jobs of a real Slurm of one node (helpers/slurm.py), and what is refused before a job is submitted."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from filelock import FileLock

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch import slurm
from gpt2_rlhf.launch.slurm import State
from gpt2_rlhf.launch.tasks import Task
from helpers import commands
from helpers import slurm as real
from helpers.commands import Command
from helpers.small_run import SMALL, copy_stages

STAGES = ("sft", "reward", "judge", "ppo")
# as many updates as SLOW_S makes last longer than Slurm takes to warn a job; a function of one's own can sleep
SLOW_REWARD = '''import os, time
def score(prompts, answers):
    """Shorter answers are better."""
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    return [-len(answer) / 100 for answer in answers]
'''
OWN = ("ppo.reward.function=slow_reward:score", "ppo.args.total_episodes=208", "ppo.args.eval_steps=7")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Make a machine look as one that can submit; tests of the real Slurm need no such thing."""
    if request.node.get_closest_marker("cluster") is None:
        monkeypatch.setattr(slurm, "find_spec", lambda name: ModuleSpec(name, None))
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def check(*overrides: str) -> None:
    slurm.check(compose.load(["launch=slurm", *overrides]).settings.launch)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("launch.slurm.time=soon", 'launch.slurm.time: soon; expected minutes, or a text such as "04:00:00"'),
        ("launch.slurm.time=0", "launch.slurm.time: 0; expected minutes"),
        ("launch.slurm.nodes=0", "launch.slurm.nodes: 0; expected a whole number above 0"),
        ("launch.slurm.nodes=2", "launch.slurm.nodes: 2 does not divide launch.processes, 1"),
        ("launch.slurm.mem_gb=much", "launch.slurm.mem_gb: much; expected a number above 0 or null"),
        ("launch.slurm.parameters=high", "launch.slurm.parameters: high; expected options of sbatch"),
    ],
)
def test_a_setting_that_no_job_could_use_is_refused_before_a_job_is_submitted(override: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        check(override)
    assert str(refused.value).startswith(said)


def test_a_job_that_lacks_settings_is_refused() -> None:
    launch = compose.load(["launch.slurm={partition: a, nodes: 1}"]).settings.launch
    with pytest.raises(UserError, match=r"no value for account, time, .*; choose launch=slurm"):
        slurm.check(launch)


def test_settings_of_a_job_are_accepted() -> None:
    check("launch.processes=8", "launch.slurm.nodes=2", "launch.slurm.time=1-00:00:00", "launch.slurm.partition=gpu")


@pytest.mark.parametrize(
    ("time_limit", "minutes"),
    [(90, 90), ("90", 90), ("90:30", 91), ("04:00:00", 240), ("1-12", 36 * 60), ("2-01:30:00", 49 * 60 + 30)],
)
def test_a_time_limit_means_what_sbatch_takes_it_for(time_limit: Any, minutes: int) -> None:
    assert slurm._minutes(time_limit) == minutes


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "sbatch" else name)
    with pytest.raises(UserError, match="launch=slurm: sbatch is not found here; start it where Slurm's commands are"):
        check()
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="launch=slurm: submitit is not installed; run pip install "):
        check()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slow_reward.py").write_text(SLOW_REWARD)
    with real.cluster(folder / "cluster") as found:
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        yield {**found, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def command(verb: str, output_dir: Path, *overrides: str) -> list[str]:
    return [verb, f"output_dir={output_dir}", *SMALL, *OWN, *overrides]


def run(environment: Mapping[str, str], *arguments: str) -> str:
    return ended(start(environment, *arguments), 0, timeout_s=500)


def start(environment: Mapping[str, str], *arguments: str) -> Command:
    with mock.patch.dict(os.environ, environment):
        return commands.start(*arguments)


def ended(command: Command, code: int, timeout_s: float) -> str:
    """What a command has printed once it has ended with this code."""
    done = command.wait(timeout_s)
    assert done.returncode == code, done.stdout
    return done.stdout


def of_slurm(environment: Mapping[str, str], *arguments: str) -> str:
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(condition: Any, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def checkpoints(output_dir: Path) -> list[Path]:
    return list(output_dir.glob("stages/ppo-*/checkpoints/checkpoint-*/files.json"))


def job_ids(output_dir: Path) -> dict[str, str]:
    return {
        path.name.partition("-")[0]: json.loads(path.read_text())["job"] for path in output_dir.glob("stages/*.job")
    }


def weights(output_dir: Path) -> dict[str, str]:
    records = [json.loads((output_dir / "latest" / stage / "manifest.json").read_text()) for stage in STAGES]
    return {record["stage"]: record["weights_sha256"]["model.safetensors"] for record in records}


@pytest.fixture(scope="module")
def straight(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of two processes on this machine that nothing disturbed; all workers of pytest share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "straight"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            run(environment, *command("ppo", folder, "launch.processes=2"))
            (folder / "done").touch()
    return folder


@pytest.mark.slow
def test_a_job_that_runs_shows_the_newest_line_of_its_log_once_five_seconds_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, stage = [0.0], tmp_path / "sft-0"
    log = tmp_path / "log"

    def wait(seconds: float) -> None:
        now[0] += seconds
        log.write_text(f"an earlier line\n  sft {now[0]:.0f}/40\n")

    monkeypatch.setattr(slurm.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(slurm.time, "sleep", wait)
    monkeypatch.setattr(slurm, "_states", lambda: {"7": State("7", "RUNNING" if now[0] < 35 else "COMPLETED", "", "a")})
    monkeypatch.setattr(slurm, "_log", lambda directory: log)
    codes: dict[Path, int] = {}
    slurm._wait([Task("sft", stage, lambda: None)], {stage: "7"}, codes, lambda task: now[0] >= 35, lambda *_: None)
    assert codes == {stage: 0}
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "sft: job 7 running on a"
    assert lines == [f"  sft {second}/40" for second in (6, 12, 18, 24, 30)]  # it looks every two seconds


@pytest.mark.cluster
def test_jobs_left_cancelled_and_requeued_end_with_the_weights_of_a_run_on_this_machine(
    environment: Mapping[str, str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    here = command("ppo", tmp_path, "launch=slurm", "launch.processes=2")
    first = start(environment, *here)
    wait_for(lambda: len(job_ids(tmp_path)) == 5)
    ids = job_ids(tmp_path)
    assert re.search(r"\| ppo-\w+ +\| queued +\| job \d+ pending", run(environment, *command("status", *sum_up(here))))
    wait_for(lambda: list(tmp_path.glob("stages/data-*/manifest.json")))
    os.kill(first.pid, signal.SIGINT)
    printed = ended(first, 130, timeout_s=60)
    assert re.search(r"the jobs go on: `make status` .* `scancel [\d ]+` cancels them\n", printed)

    second = start(environment, *here)  # waits for the jobs of the first
    wait_for(lambda: checkpoints(tmp_path))
    assert job_ids(tmp_path) == ids
    of_slurm(environment, "scontrol", "requeue", ids["ppo"])
    wait_for(lambda: "Requeue" in of_slurm(environment, "scontrol", "show", "job", ids["ppo"]))
    wait_for(lambda: "RUNNING" in of_slurm(environment, "squeue", "--noheader", "--jobs", ids["ppo"], "--format=%T"))
    time.sleep(3)
    of_slurm(environment, "scancel", ids["ppo"])
    printed = ended(second, 1, timeout_s=120)
    assert re.search(rf"error: ppo: job {ids['ppo']} cancelled.* \(log: .*_log\.out\)\n", printed), printed

    run(environment, *here)
    straight = request.getfixturevalue("straight")  # only here, since the longest test need not wait for it
    assert weights(tmp_path) == weights(straight)
    assert job_ids(tmp_path) == {**ids, "ppo": job_ids(tmp_path)["ppo"]}


def sum_up(here: list[str]) -> tuple[Any, ...]:
    """The output folder and the overrides of a command, for another verb."""
    return Path(here[1].partition("=")[2]), *here[2 + len(SMALL) + len(OWN) :]


@pytest.mark.cluster
def test_a_job_over_its_time_limit_is_requeued_and_ends_with_the_same_weights(
    environment: Mapping[str, str], straight: Path, tmp_path: Path
) -> None:
    copy_stages(straight, tmp_path, "data", "sft", "reward", "judge")
    here = command("ppo", tmp_path, "launch=slurm", "launch.processes=2", "launch.slurm.signal_delay_s=20")
    started = start({**environment, "SLOW_S": "10"}, *here)
    wait_for(lambda: checkpoints(tmp_path))
    job = job_ids(tmp_path)["ppo"]
    # Slurm looks at its jobs every 30 s: it warns this one 20 to 50 s before its end, which is 10 to 40 s from now
    of_slurm(environment, "scontrol", "update", f"JobId={job}", "EndTime=now+60")
    wait_for(lambda: "Restarts=1" in of_slurm(environment, "scontrol", "show", "job", job))
    # a busy machine may take long to start it
    of_slurm(environment, "scontrol", "update", f"JobId={job}", "TimeLimit=60")
    ended(started, 0, timeout_s=400)
    (log,) = tmp_path.glob("jobs/ppo-*/*_0_log.out")
    assert "ppo stopped by SIGUSR2 after writing checkpoint-" in log.read_text()
    assert "ppo goes on from step " in log.read_text()
    assert "Restarts=1" in of_slurm(environment, "scontrol", "show", "job", job)
    assert weights(tmp_path) == weights(straight)


@pytest.mark.cluster
def test_a_sweep_of_two_points_is_jobs_up_to_the_evaluation_and_one_table(
    environment: Mapping[str, str], straight: Path, tmp_path: Path
) -> None:
    copy_stages(straight, tmp_path, "data", "sft", "reward", "judge")
    here = command("sweep", tmp_path, "launch=slurm", "launch.processes=2", "ppo.args.kl_coef=0.1,0.2")
    run(environment, *here)
    jobs = [json.loads(path.read_text())["job"] for path in tmp_path.glob("stages/*.job")]
    assert len(set(jobs)) == 4, "PPO and the evaluation of each point"
    (table,) = tmp_path.glob("sweeps/*/sweep.json")
    states = [point["state"] for point in json.loads(table.read_text())["points"]]
    assert sorted(states) == ["", "best"]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("stages/ppo-*/manifest.json")]
    assert len(records) == 2
    straight_ppo = json.loads((straight / "latest/ppo/manifest.json").read_text())  # its KL coefficient is 0.1
    assert straight_ppo["weights_sha256"] in [record["weights_sha256"] for record in records]
    again = run(environment, *here)
    assert "its log is" not in again, "a job was submitted again"


@pytest.mark.cluster
def test_a_stage_that_fails_is_one_line_with_its_job_its_log_and_its_error(
    environment: Mapping[str, str], straight: Path, tmp_path: Path
) -> None:
    copy_stages(straight, tmp_path, "data", "sft")
    here = command("ppo", tmp_path, "launch=slurm", "launch.processes=2", "reward.args.optim=adamw_bnb_8bit")
    printed = ended(start(environment, *here), 1, timeout_s=200)
    assert re.search(r"error: reward: job \d+ failed: reward\.args\.optim: adamw_bnb_8bit: .* \(log: .*\)\n", printed)
    assert re.search(r"error: ppo: job \d+ cancelled: a stage that it needs failed.*\n", printed)
    assert printed.count("Traceback") == 0


@pytest.mark.cluster
def test_what_slurm_itself_refuses_is_one_line(environment: Mapping[str, str], tmp_path: Path) -> None:
    here = command("data", tmp_path, "launch=slurm", "launch.slurm.partition=none")
    with mock.patch.dict(os.environ, environment):
        done = commands.run(*here, timeout_s=100)
    assert done.returncode == 2
    assert re.fullmatch(r"error: launch\.slurm: Slurm refuses the job of data: .*Invalid partition.*\n", done.stderr)
