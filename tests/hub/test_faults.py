import errno

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from gpt2_rlhf.hub import faults


def answered(status: int, headers: dict[str, str] | None = None) -> HfHubHTTPError:
    request = httpx2.Request("PUT", "https://storage.example/object?X-Amz-Signature=secret")
    return HfHubHTTPError("it failed", response=httpx2.Response(status, headers=headers, request=request))


def wrapped(cause: Exception, by: Exception | None = None) -> Exception:
    """Return the error as huggingface_hub wraps it, by default as it does for a failed LFS upload."""
    error = by or RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("status", [408, 412, 425, 429, 500, 502, 503, 504])
def test_a_status_that_can_change_gets_another_try(status: int) -> None:
    assert faults.failure(wrapped(answered(status))).is_passing


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422])
def test_a_status_that_stays_gets_no_other_try(status: int) -> None:
    assert not faults.failure(wrapped(answered(status))).is_passing


def test_the_query_of_an_address_is_not_shown() -> None:
    assert faults.failure(answered(500)).cause == "the Hub answered 500 Internal Server Error to PUT /object"
    failure = faults.failure(ConnectionError("no route to https://storage.example/object?X-Amz-Signature=secret"))
    assert failure.cause == "no route to https://storage.example/object"


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [({}, None), ({"Retry-After": "7"}, 7.0), ({"ratelimit": '"api";r=0;t=55'}, 55.0)],
)
def test_the_wait_is_the_one_that_the_hub_requests(headers: dict[str, str], wait_s: float | None) -> None:
    assert faults.failure(answered(429, headers)).wait_s == wait_s


@pytest.mark.parametrize(
    ("error", "is_passing"),
    [
        (wrapped(httpx2.WriteTimeout("")), True),
        (httpx2.ConnectError("[Errno -3] Temporary failure in name resolution"), True),
        (httpx2.LocalProtocolError("Illegal header value"), False),
        (httpx2.UnsupportedProtocol("Request URL is missing a protocol"), False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (wrapped(answered(503), LocalEntryNotFoundError("not in the cache")), True),
        (wrapped(answered(404), OSError("demo is not a local folder")), False),
        (LocalEntryNotFoundError("not in the cache"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (ValueError("Invalid metadata in README.md."), False),
        (faults.Damaged("model.safetensors came back with other content"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_without_a_status_is_sorted_by_its_class(error: Exception, is_passing: bool) -> None:
    failure = faults.failure(error)
    assert failure.is_passing == is_passing
    assert failure.cause
    assert "\n" not in failure.cause


def test_a_defect_is_raised_again() -> None:
    with pytest.raises(KeyError):
        faults.failure(KeyError("name"))


def test_a_defect_in_code_that_handles_a_fault_is_raised_again() -> None:
    defect = KeyError("name")
    defect.__context__ = answered(503)
    with pytest.raises(KeyError):
        faults.failure(defect)
