"""Run one publishing step in a child process, and retry transient failures.

huggingface_hub 2.4.0 retries some calls and not others (the commit), and waits without end for a server that accepts
the connection and sends nothing. A timeout of its client does not help against a server that sends a byte now and then,
and its upload threads keep an interrupted process alive. So each try is a child process with two limits: it gives up
when no byte has moved for `silence_s`, and it is killed after `try_s`. The call and its outcome are pickled; the token
is no part of them: the child finds it as huggingface_hub does.
"""

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, get_token, is_offline_mode, set_client_factory

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub.faults import Failure, failure

_SLOWEST_BYTES_PER_S = 100_000  # nearly 1 Mbit/s; a try gets the time on top that its files take at this speed

# huggingface_hub reads these when it is imported, so only the child has them: downloads elsewhere keep Xet. Without
# Xet, files go by LFS over HTTP. Where the answer to a commit is lost, the Xet path commits again blindly and leaves a
# second, empty commit; LFS raises, and the next try finds all files in place. Warnings name signed upload addresses.
_ENVIRONMENT = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_VERBOSITY": "error"}

Found = TypeVar("Found")


@dataclass(frozen=True)
class Patience:
    """How often and for how long a step is tried: at most tries * (try_s + the wait between two tries)."""

    tries: int
    first_wait_s: float  # doubled after each try
    longest_wait_s: float  # also where the Hub asks for more
    silence_s: float
    try_s: float


# 2 + 4 + 8 + 16 s between five tries; the Hub counts its rate limits in windows of five minutes. huggingface_hub
# repeats an LFS upload without an answer five times itself, so such silence can last 6 * 60 + 23 s within one try.
PUBLISHING = Patience(tries=5, first_wait_s=2, longest_wait_s=300, silence_s=60, try_s=600)
LOOKING = Patience(tries=2, first_wait_s=2, longest_wait_s=10, silence_s=8, try_s=20)  # the user waits for it


def run(step: Callable[..., Found], *arguments: Any, patience: Patience, size_bytes: int = 0) -> Found:
    """Return what step(api, *arguments) returns; print a line for each failed try. size_bytes: what has to be moved.

    Raises:
        UserError: another try cannot help, or the last try failed.
    """
    call = pickle.dumps((os.getpid(), patience.silence_s, step, arguments))
    limit_s = patience.try_s + size_bytes / _SLOWEST_BYTES_PER_S
    number = 1
    while isinstance(outcome := _try(call, step.__name__, limit_s), Failure):
        if not outcome.is_passing:
            raise UserError(outcome.cause)
        if number == patience.tries:
            raise UserError(f"{outcome.cause} (try {number} of {number})")
        wait_s = max(patience.first_wait_s * 2 ** (number - 1), outcome.wait_s or 0)
        wait_s = min(wait_s, patience.longest_wait_s)
        number += 1
        print(f"publish: try {number} of {patience.tries} in {wait_s:g} s: {outcome.cause}", flush=True)
        time.sleep(wait_s)
    return outcome


def _try(call: bytes, name: str, limit_s: float) -> Any:
    """Return what the pickled call returns in a child process, or the Failure of it."""
    command = [sys.executable, "-m", "gpt2_rlhf.hub.tries"]
    environment = os.environ | _ENVIRONMENT
    try:
        # The session of its own keeps Ctrl-C from the child: this process gets it, and `run` then kills the child.
        child = subprocess.run(
            command, input=call, stdout=subprocess.PIPE, env=environment, start_new_session=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return Failure(f"{name} was not done after {limit_s:.0f} s", is_passing=True)
    if child.returncode < 0:
        return Failure(f"the process for {name} was killed by signal {-child.returncode}", is_passing=True)
    if child.returncode > 0:
        raise UserError(f"{name} crashed; the traceback above is a defect of gpt2-rlhf or huggingface_hub")
    return pickle.loads(child.stdout)


def _child() -> None:
    """Make the call that stdin brings, and write its result or Failure to stdout."""
    parent, silence_s, step, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    set_client_factory(partial(httpx2.Client, follow_redirects=True, timeout=silence_s))  # the default has no timeout
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what libraries print, in C as well, must not mix with the answer
        pickle.dump(_outcome(step, arguments), answer)


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _outcome(step: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    token = get_token()
    try:
        return step(HfApi(token=_checked(token)), *arguments)
    except Exception as error:  # of every kind: `failure` raises those again that are defects
        failed = failure(error)
        # no message of huggingface_hub 2.4 is known to hold the token
        return dataclasses.replace(failed, cause=failed.cause.replace(token, "<token>")) if token else failed


def _checked(token: str | None) -> str:
    if token is None:
        raise UserError("there is no Hub token on this machine; run `hf auth login` first, or set HF_TOKEN")
    if not token.isascii() or not token.isprintable() or " " in token:  # httpx2 would print it in its error
        raise UserError("your Hub token holds characters that no token has; run `hf auth login` again")
    if is_offline_mode():
        raise UserError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing can be published; unset it")
    return token


if __name__ == "__main__":
    _child()
