"""Serve the local hub over HTTP: routes, tokens, faults and a log of the requests.

with Hub() as hub:
    hub.accounts["hf_token"] = Account("somebody")
    hub.fail(Fault("commit", "status", times=2))
    ...  # a process with HF_ENDPOINT=hub.address
    assert hub.calls("commit") == 3
"""

import os
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from helpers.local_hub import answers
from helpers.local_hub.answers import Answer, Refused, Request, State
from helpers.local_hub.faults import Fault, Faults, Kind
from helpers.local_hub.store import Account, Blob, Repository

_REPO = r"(?P<namespace>[^/]+)/(?P<name>[^/]+)"
_API = rf"/api/models/{_REPO}"
_REVISION = r"(?P<revision>[^/]+)"

# call: methods, path, handler. Faults and the log use the names of the calls.
ROUTES: dict[str, tuple[str, str, answers.Handler]] = {
    "whoami": ("GET", "/api/whoami-v2", answers.whoami),
    "validate": ("POST", "/api/validate-yaml", answers.validate),
    "create": ("POST", "/api/repos/create", answers.create),
    "info": ("GET", rf"{_API}(/revision/{_REVISION})?", answers.info),
    "tree": ("GET", rf"{_API}/tree/{_REVISION}(/(?P<path>.+))?", answers.tree),
    "paths_info": ("POST", rf"{_API}/paths-info/{_REVISION}", answers.paths_info),
    "refs": ("GET", rf"{_API}/refs", answers.refs),
    "branch": ("POST", rf"{_API}/branch/{_REVISION}", answers.branch),
    "tag": ("POST", rf"{_API}/tag/{_REVISION}", answers.tag),
    "preupload": ("POST", rf"{_API}/preupload/{_REVISION}", answers.preupload),
    "commit": ("POST", rf"{_API}/commit/{_REVISION}", answers.commit),
    "batch": ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", answers.batch),
    "verify": ("POST", rf"/{_REPO}\.git/info/lfs/verify", answers.verify),
    "put": ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", answers.put),
    "storage": ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", answers.storage),
    "resolve": ("HEAD GET", rf"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", answers.resolve),
}
_LONGEST_S = 60  # no thread of the hub waits for longer


@dataclass(frozen=True)
class LoggedRequest:
    """One request in the log."""

    call: str
    method: str
    path: str
    has_token: bool


@dataclass(frozen=True)
class _Late:
    """The request for `call` that waits until the next one arrives."""

    call: str = ""
    next_came: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The running hub, a context manager. Two servers: the storage is another origin, as on the Hub."""

    def __init__(self) -> None:
        self._state = State()
        self._faults = Faults()
        self._lock = threading.Lock()  # the store changes by one request at a time
        self._late = _Late()
        self._closing = threading.Event()
        self.log: list[LoggedRequest] = []
        self._servers = [self._server(), self._server()]
        self._state.address, self._state.storage_address = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )

    @property
    def address(self) -> str:
        """The value for HF_ENDPOINT."""
        return self._state.address

    @property
    def accounts(self) -> dict[str, Account]:
        """Accounts by their token."""
        return self._state.accounts

    @property
    def repositories(self) -> dict[str, Repository]:
        """Repositories by namespace/name."""
        return self._state.repositories

    def store_object(self, content: bytes) -> None:
        """Put the content of an LFS file into the storage, as an earlier push did."""
        self._state.objects[Blob(content, is_lfs=True).sha256] = content

    def fail(self, *faults: Fault) -> None:
        """Add these faults."""
        for fault in faults:
            self._faults.add(fault)

    def faults_left(self) -> int:
        """Return how many faults have not happened yet."""
        return self._faults.left()

    def heal(self) -> None:
        """Remove the faults that have not happened yet."""
        self._faults.clear()

    def calls(self, call: str) -> int:
        """Return how often a call was made so far."""
        return sum(request.call == call for request in self.log)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _server(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            def serve(self) -> None:
                hub._serve(self)

        return _Server(("127.0.0.1", 0), Handler)

    def _serve(self, http: "_Handler") -> None:
        path = urlsplit(http.path).path
        found = _route(http.command, path)
        if found is None:
            return http.send(Answer(501, f"the local hub has no {http.command} {path}".encode()))
        call, match, handler = found
        token = http.headers.get("Authorization", "").removeprefix("Bearer ")
        self.log.append(LoggedRequest(call, http.command, path, bool(token)))
        fault = self._faults.take(call)
        kind = None if fault is None else fault.kind
        if kind == "late":
            self._late = _Late(call)
        size = int(http.headers.get("Content-Length", "0"))
        body = http.rfile.read(size // 2 if kind == "reset" else size)
        if kind == "hang":
            self._closing.wait(_LONGEST_S)
        if kind in ("reset", "hang"):
            return http.cut()
        if kind == "late":
            self._late.next_came.wait(_LONGEST_S)
        elif self._late.call == call:
            self._late.next_came.set()
            self._late.done.wait(_LONGEST_S)
        if fault is not None and kind in ("status", "html"):
            return http.send(_failed(fault))
        parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
        request = Request(http.command, parts, body, self.accounts.get(token), bool(token))
        try:
            with self._lock:
                answer = handler(self._state, request)
        except Refused as refused:
            answer = refused.answer
        if kind == "late":
            self._late.done.set()
        return http.cut() if kind == "lost" else http.send(answer, kind)


def _route(method: str, path: str) -> tuple[str, re.Match[str], answers.Handler] | None:
    for call, (methods, pattern, handler) in ROUTES.items():
        match = re.fullmatch(pattern, path)
        if match and method in methods.split():
            return call, match, handler
    return None


def _failed(fault: Fault) -> Answer:
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    if fault.kind == "html":
        return Answer(fault.status, b"<html>Bad gateway</html>", {"Content-Type": "text/html", **headers})
    return Answer(fault.status, b'{"error":"injected"}', {"Content-Type": "application/json", **headers})


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that cut the connection are part of the tests
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_POST = do_PUT = lambda self: self.serve()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, answer: Answer, kind: Kind | None = None) -> None:
        """Write an answer or the requested range of it; a fault may damage it."""
        body, status, headers = answer.body, answer.status, dict(answer.headers)
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if status == 200 and requested:
            first = int(requested[1])
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body, status = body[first:], 206
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if kind == "truncate":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def cut(self) -> None:
        """Reset the connection, so that the client gets an error and not the end of a body."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # at once; socketserver would first end the connection properly
        self.close_connection = True
