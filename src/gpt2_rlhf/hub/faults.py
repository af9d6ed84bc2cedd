"""Turn what huggingface_hub 2.4 raises into one line, and say whether another try can help.

Its errors share no class: a 5xx is HfHubHTTPError, a cut commit httpx2.ReadError, a failed LFS upload RuntimeError with
the cause chained, a bad card ValueError, and an HTML page where JSON is expected is a kind of ValueError as well.
"""

import errno
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers

from gpt2_rlhf.config.errors import UserError, one_line


@dataclass(frozen=True)
class Failure:
    """Why a try failed. is_passing: whether another try can help. wait_s: how long the Hub asks to wait, if it does."""

    cause: str
    is_passing: bool
    wait_s: float | None = None


class Damaged(Exception):
    """The Hub holds or sent something else than the file on this disk."""


_ANY = range(1000)
_LOCAL = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS}

# Class, HTTP statuses or error numbers, line, whether another try can help. The first row that fits counts.
_FAULTS: tuple[tuple[type[Exception], Container[int], str, bool], ...] = (
    (UserError, _ANY, "{text}", False),
    (Damaged, _ANY, "{text}", True),
    # 412: somebody committed after the branch was read; the next try starts from the new head
    (HfHubHTTPError, {408, 412, 425, 429, *range(500, 600)}, "{text}", True),
    (HfHubHTTPError, {401}, "{text}; the Hub does not accept your token: `hf auth login` with another", False),
    (HfHubHTTPError, {402}, "{text}; the account's plan does not allow it", False),
    (HfHubHTTPError, {403}, "{text}; your token may not do that", False),
    (HfHubHTTPError, {404}, "{text}; there is no such repository or revision, or not for your token", False),
    (HfHubHTTPError, _ANY, "{text}", False),
    (httpx2.TimeoutException, _ANY, "the Hub fell silent ({kind})", True),
    (httpx2.ConnectError, _ANY, "the Hub cannot be reached ({text})", True),
    (httpx2.LocalProtocolError, _ANY, "the request is not valid ({text})", False),
    (httpx2.UnsupportedProtocol, _ANY, "the address of the Hub is not valid ({text})", False),
    (httpx2.RequestError, _ANY, "the connection broke ({text})", True),
    (json.JSONDecodeError, _ANY, "the Hub answered with something that is not JSON", True),
    (OSError, _LOCAL, "{text}", False),
    (OSError, _ANY, "{text}", True),
    (ValueError, _ANY, "{text}", False),  # such as a card whose metadata the Hub does not accept
)


def failure(error: Exception) -> Failure:
    """Return what to tell the user about an error that publishing raised.

    Queries of addresses are left out, since they can hold signatures.

    Raises:
        Exception: the error itself, if no row of the table fits: it is a defect of the program.
    """
    for one in sorted(_chain(error), key=_is_wrapper):  # from the outermost inwards, wrappers last
        if isinstance(one, HfHubHTTPError):
            number, text, wait_s = one.response.status_code, _answer(one), _wait_s(one.response)
        else:
            number, text, wait_s = getattr(one, "errno", None) or 0, one_line(str(one)) or type(one).__name__, None
        for kind, numbers, line, is_passing in _FAULTS:
            if isinstance(one, kind) and number in numbers:
                return Failure(line.format(text=text, kind=type(one).__name__), is_passing, wait_s)
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__  # not __context__, which would hide a defect in code that handles a fault


def _is_wrapper(error: BaseException) -> bool:
    """Return whether it is an OSError without a number, as LocalEntryNotFoundError is: its cause says more."""
    return isinstance(error, OSError) and not isinstance(error, HfHubHTTPError) and error.errno is None


def _answer(error: HfHubHTTPError) -> str:
    response, request = error.response, error.response.request
    message = f": {one_line(error.server_message)[:200].rstrip('.')}" if error.server_message else ""
    answered = f"{response.status_code} {response.reason_phrase} to {request.method} {request.url.path}"
    return f"the Hub answered {answered}{message}"


def _wait_s(response: httpx2.Response) -> float | None:
    """Return how long the Hub asks to wait, by its rate limit or by Retry-After in seconds."""
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    retry_after = response.headers.get("Retry-After", "")
    return float(retry_after) if retry_after.isdigit() else None
