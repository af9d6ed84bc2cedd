"""Sort what huggingface_hub 2.4 raises: one line about the cause, and whether another try can help.

Its errors share no class: 5xx are HfHubHTTPError, a cut commit is httpx2.ReadError, a failed LFS upload RuntimeError
with the cause chained, a bad card ValueError, and an HTML page in place of JSON a ValueError as well.
"""

import errno
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers

from gpt2_rlhf.config.errors import UserError

# 412: somebody committed between our look at the branch and our commit; the next try starts from the new head
PASSING_STATUSES = frozenset({408, 412, 425, 429})
_ADVICE = {
    401: "; the Hub does not accept your token: `hf auth login` with another",
    402: "; the account's plan does not allow it",
    403: "; your token may not do that",
    404: "; there is no such repository or revision, or not for your token",
}
_LOCAL_FAULTS = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Damaged(Exception):
    """What the Hub holds or sent is not what is on this disk; another try may mend it."""


@dataclass(frozen=True)
class Failure:
    """Why a try failed. wait_s: how long the Hub asks to wait, if it does."""

    cause: str
    is_passing: bool
    wait_s: float | None = None


def failure(error: Exception) -> Failure:
    """What to tell of an error raised while talking to the Hub, without URLs' queries, which can hold signatures.

    Raises:
        Exception: the error itself, where it is no fault of network, Hub, card or disk: a defect.
    """
    chain = list(_chain(error))
    if (refused := next((e for e in chain if isinstance(e, UserError)), None)) is not None:
        return Failure(str(refused), is_passing=False)
    if isinstance(error, Damaged):
        return Failure(str(error), is_passing=True)
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError | json.JSONDecodeError):
        return Failure(_one_line(error), is_passing=False)
    if (answered := next((e for e in chain if isinstance(e, HfHubHTTPError)), None)) is not None:
        return _of_answer(answered)
    if (lost := next((e for e in chain if isinstance(e, httpx2.RequestError)), None)) is not None:
        # the two that are faults of what was asked, such as a header that is none
        asked_wrongly = isinstance(lost, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol)
        return Failure(_of_transport(lost), is_passing=not asked_wrongly)
    if any(isinstance(e, json.JSONDecodeError) for e in chain):
        return Failure("the Hub answered with something that is not JSON", is_passing=True)
    if isinstance(error, OSError):
        return Failure(_one_line(error), is_passing=error.errno not in _LOCAL_FAULTS)
    raise error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_answer(error: HfHubHTTPError) -> Failure:
    response = error.response
    said = f": {' '.join(error.server_message.split())[:200].rstrip('.')}" if error.server_message else ""
    asked = f"{response.request.method} {response.request.url.path}"
    cause = f"the Hub answered {response.status_code} {response.reason_phrase} to {asked}{said}"
    is_passing = response.status_code >= 500 or response.status_code in PASSING_STATUSES
    return Failure(cause + _ADVICE.get(response.status_code, ""), is_passing, _wait_s(response))


def _wait_s(response: httpx2.Response) -> float | None:
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None


def _of_transport(error: httpx2.RequestError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return f"the Hub fell silent ({type(error).__name__})"
    if isinstance(error, httpx2.ConnectError):
        return f"the Hub cannot be reached ({_one_line(error)})"
    return f"the connection broke ({_one_line(error)})"


def _one_line(error: Exception) -> str:
    text = re.sub(r"\?\S+", "", " ".join(str(error).split()))
    return text[:300] or type(error).__name__
