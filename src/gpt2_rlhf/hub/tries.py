"""Run one publishing step in a child process, and retry transient failures.

huggingface_hub 2.4.0 retries some calls and not others (the commit), and waits without end for a server that accepts
the connection and sends nothing. A timeout of its client does not help against a server that sends a byte now and then,
and its upload threads keep an interrupted process alive. So each try is a child process with two limits: it gives up
when no byte has moved for `silence_s`, and it is killed after `try_s`. The token is no part of a call or of its
outcome: the child finds it as huggingface_hub does.
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, get_token, is_offline_mode

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub.faults import Failure, failure

_SLOWEST_BYTES_PER_S = 100_000  # nearly 1 Mbit/s; a try gets the time on top that its files take at this speed

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
    limit_s = patience.try_s + size_bytes / _SLOWEST_BYTES_PER_S
    number = 1
    while isinstance(outcome := _try(step, arguments, patience.silence_s, limit_s), Failure):
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


def _try(step: Callable[..., Any], arguments: Sequence[Any], silence_s: float, limit_s: float) -> Any:
    """Return what the step returns in a child process, or the Failure of it."""
    # on Linux forked, as stages are: a new Python imports for 0.3 s, and for seconds where the step loads a model
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    answer, to = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(os.getpid(), silence_s, step, arguments, to))
    # the child never takes them: Ctrl-C reaches this process alone, which then kills the child
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        child.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        to.close()
        if not answer.poll(limit_s):
            return Failure(f"{step.__name__} was not done after {limit_s:.0f} s", is_passing=True)
        return answer.recv()
    except EOFError:  # it ended without an answer
        child.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if child.pid is not None:
            child.kill()
            child.join()
    code = child.exitcode or 0
    if code < 0:
        return Failure(f"the process for {step.__name__} was killed by signal {-code}", is_passing=True)
    raise UserError(f"{step.__name__} crashed; the traceback above is a defect of gpt2-rlhf or huggingface_hub")


def _work(parent: int, silence_s: float, step: Callable[..., Any], arguments: Sequence[Any], to: Connection) -> None:
    """Make a call as a child process, and send its result or Failure."""
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    os.dup2(2, 1)  # what libraries print, in C as well, is no output of this program
    huggingface_hub.logging.set_verbosity_error()  # warnings name signed upload addresses
    # Without Xet, files go by LFS over HTTP. Where the answer to a commit is lost, the Xet path commits again blindly
    # and leaves a second, empty commit; LFS raises, and the next try finds all files in place.
    huggingface_hub.constants.HF_HUB_DISABLE_XET = True
    # the default client has no timeout
    huggingface_hub.set_client_factory(partial(httpx2.Client, follow_redirects=True, timeout=silence_s))
    try:
        outcome = _outcome(step, arguments)
    except Exception:  # not by multiprocessing, whose traceback is of its own modules too
        traceback.print_exc()
        os._exit(1)
    to.send(outcome)


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _outcome(step: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    token = get_token()
    try:
        if token is None:
            raise UserError("there is no Hub token on this machine; run `hf auth login` first, or set HF_TOKEN")
        if not token.isascii() or not token.isprintable() or " " in token:  # httpx2 would print it in its error
            raise UserError("your Hub token holds characters that no token has; run `hf auth login` again")
        if is_offline_mode():
            raise UserError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing can be published; unset it")
        return step(HfApi(token=token), *arguments)
    except Exception as error:  # of every kind: `failure` raises those again that are defects
        failed = failure(error)
        # no message of huggingface_hub 2.4 is known to hold the token
        return dataclasses.replace(failed, cause=failed.cause.replace(token, "<token>")) if token else failed
