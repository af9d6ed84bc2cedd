"""Run a step of publishing in a child process until it succeeds, its fault is one that stays, or patience ends.

huggingface_hub 2.4.0 retries some calls (HTTP back-off) and not others (the commit), and waits for ever on a server
that accepts and says nothing. So here a child tries once, under two watches: it gives up when no byte has moved for
`silence_s`, and is killed after `try_s`, whatever it is doing. Both mean another try, like everything that can pass.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt2_rlhf.config.errors import UserError

EXIT_FAILED = 3  # of the worker, whose last line then says why; any other code but 0 is a crash

# Read by huggingface_hub when it is imported. Without Xet, files go by LFS over HTTP: where the answer to a commit is
# lost, the Xet path commits again blindly and leaves a second, empty commit; LFS raises, and the next try finds all
# files in place. It also makes one commit of a folder, where Xet's pipeline makes several (huggingface_hub 2.4.0,
# _upload_pipeline.py).
ENVIRONMENT = {"HF_HUB_DISABLE_XET": "1"}


@dataclass(frozen=True)
class Job:
    """What to do, with what. Tokens are no part of it: the worker finds its own, as huggingface_hub does."""

    step: str  # look, push, fetch or load, the functions of hub_worker.py
    setting: str  # where repo_id was given, for messages
    repo_id: str
    private: bool
    revision: str | None  # branch to push to; None is main
    files: Mapping[str, str]  # path in the repository: path on this disk
    run: str  # the run's hash
    model_class: str  # of transformers, to load the model back with
    cache_dir: str
    commit: str | None  # what fetch and load read


@dataclass(frozen=True)
class Patience:
    """How often and how long. At worst a step ends after tries * (try_s + its wait)."""

    tries: int
    first_wait_s: float  # doubled after each try
    longest_wait_s: float  # also where the Hub asks for more
    silence_s: float
    try_s: float


# 2 + 4 + 8 + 16 s between five tries; the Hub counts its rate limits in windows of five minutes. huggingface_hub
# repeats a silent LFS upload five times itself, so silence there may last 6 * 60 + 23 s before a try ends.
PUBLISHING = Patience(tries=5, first_wait_s=2, longest_wait_s=300, silence_s=60, try_s=600)
LOOKING = Patience(tries=2, first_wait_s=2, longest_wait_s=10, silence_s=8, try_s=20)  # somebody is waiting
_SLOWEST_BYTES_PER_S = 100_000  # a try gets the time that its files take at a slow 1 Mbit/s on top


def run(job: Job, patience: Patience) -> dict[str, Any]:
    """What the step found, after as many tries as it takes; each failed one is a line on stdout.

    Raises:
        UserError: a fault that another try does not mend, or the last try failed.
    """
    bytes_to_move = sum(os.path.getsize(path) for path in job.files.values())
    limit_s = patience.try_s + bytes_to_move / _SLOWEST_BYTES_PER_S
    wait_s = patience.first_wait_s
    number = 0
    while True:
        number += 1
        result = _try(job, silence_s=patience.silence_s, limit_s=limit_s)
        if "cause" not in result:
            return result
        if not result["is_passing"]:
            raise UserError(result["cause"])
        if number == patience.tries:
            raise UserError(f"{result['cause']} (try {number} of {number})")
        pause_s = min(max(wait_s, result["wait_s"] or 0), patience.longest_wait_s)
        print(f"publish: try {number + 1} of {patience.tries} in {pause_s:g} s: {result['cause']}", flush=True)
        time.sleep(pause_s)
        wait_s *= 2


def _try(job: Job, *, silence_s: float, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "gpt2_rlhf.hub.worker", json.dumps(dataclasses.asdict(job)), str(silence_s)]
    # A session of its own: Ctrl-C reaches us alone, and we end the child. stdin: its end tells the child of ours.
    with subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return _passing(f"{job.step} was not done after {limit_s:.0f} s")
        finally:
            child.kill()
        if code < 0:
            return _passing(f"the process for {job.step} was killed by signal {-code}")
        if code not in (0, EXIT_FAILED):
            raise UserError(f"{job.step} crashed; the traceback above is a defect of gpt2-rlhf or huggingface_hub")
        assert child.stdout is not None
        return json.loads(child.stdout.read().splitlines()[-1])


def _passing(cause: str) -> dict[str, Any]:
    return {"cause": cause, "is_passing": True, "wait_s": None}
