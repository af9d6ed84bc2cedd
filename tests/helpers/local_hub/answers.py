"""Change the store as each call says and return the answer, without HTTP."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from helpers.local_hub import card_rules
from helpers.local_hub.store import Account, Blob, Commit, Repository, new_repository, upload_mode


@dataclass(frozen=True)
class Request:
    """One HTTP request; parts: what the route's pattern captured, unquoted."""

    method: str
    parts: Mapping[str, str]
    body: bytes
    account: Account | None  # None: anonymous, or a token that the hub does not know
    has_token: bool

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def repo(self) -> str:
        """namespace/name"""
        return f"{self.parts['namespace']}/{self.parts['name']}"


@dataclass(frozen=True)
class Answer:
    """One HTTP response. A HEAD request gets the headers alone."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class State:
    """Everything that the hub holds, and the addresses of its two origins."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}  # by token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.address = ""
        self.storage_address = ""


class Refused(Exception):
    """The hub refuses the request with this answer."""

    def __init__(self, status: int, text: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(text)
        named = {"X-Error-Message": text, "X-Error-Code": code, "X-Repo-Commit": commit}
        headers = {name: value for name, value in named.items() if value}
        self.answer = Answer(status, json.dumps({"error": text}).encode(), headers)


def as_json(content: Any, status: int = 200) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def whoami(state: State, request: Request) -> Answer:
    """GET /api/whoami-v2"""
    if request.account is None:
        raise Refused(401, "Invalid username or password.")
    return as_json(request.account.whoami())


def validate(state: State, request: Request) -> Answer:
    """POST /api/validate-yaml"""
    content = request.json()["content"]
    found = {
        "errors": [{"message": m} for m in card_rules.errors(content)],
        "warnings": [{"message": m} for m in card_rules.warnings(content)],
    }
    return as_json(found, 400 if found["errors"] else 200)


def create(state: State, request: Request) -> Answer:
    """POST /api/repos/create"""
    body = request.json()
    account = _account(request)
    namespace = body["organization"] or account.name
    name = f"{namespace}/{body['name']}"
    if not account.writes(namespace):
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    known = {"url": f"{state.address}/{name}", "name": name, "id": "0"}
    if name in state.repositories:
        return as_json({"error": "You already created this model repo", **known}, 409)
    state.repositories[name] = new_repository(name, body.get("visibility") == "private")
    return as_json(known)


def info(state: State, request: Request) -> Answer:
    """GET /api/models/<repo>[/revision/<revision>]"""
    repository = _readable(state, request)
    commit = _commit(repository, request.parts.get("revision") or "main")
    files = [{"rfilename": path, "size": len(b.content), "blobId": b.oid} for path, b in commit.files.items()]
    return as_json(
        {"id": repository.name, "private": repository.is_private, "sha": commit.sha, "siblings": files, "tags": []}
    )


def tree(state: State, request: Request) -> Answer:
    """GET /api/models/<repo>/tree/<revision>[/<folder>], all files on one page"""
    commit = _commit(_readable(state, request), request.parts["revision"])
    folder = f"{request.parts['path']}/" if "path" in request.parts else ""
    found = {path: blob for path, blob in commit.files.items() if path.startswith(folder)}
    if not found:
        raise Refused(404, "Entry not found", "EntryNotFound")
    return as_json([_entry(path, blob) for path, blob in found.items()])


def paths_info(state: State, request: Request) -> Answer:
    """POST /api/models/<repo>/paths-info/<revision>, a form"""
    repository = _readable(state, request)
    commit = _commit(repository, request.parts["revision"])
    form = parse_qs(request.body.decode())
    found = {path: blob for path, blob in commit.files.items() if path in form["paths"]}
    entries = [_entry(path, blob) for path, blob in found.items()]
    if form.get("expand") == ["true"]:
        for entry in entries:
            last = repository.last_change(commit, entry["path"])
            entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": "2031-02-03T10:00:00.000Z"}
    return as_json(entries)


def refs(state: State, request: Request) -> Answer:
    """GET /api/models/<repo>/refs"""
    repository = _readable(state, request)

    def listed(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in named.items()]

    return as_json(
        {"branches": listed("heads", repository.branches), "tags": listed("tags", repository.tags), "converts": []}
    )


def branch(state: State, request: Request) -> Answer:
    """POST /api/models/<repo>/branch/<branch>"""
    repository = _writable(state, request)
    name = request.parts["revision"]
    if name in repository.branches:
        raise Refused(409, "Reference already exists")
    start = request.json().get("startingPoint", "main")
    repository.branches[name] = _commit(repository, start).sha
    return as_json({})


def tag(state: State, request: Request) -> Answer:
    """POST /api/models/<repo>/tag/<revision>"""
    repository = _writable(state, request)
    name = request.json()["tag"]
    if name in repository.tags:
        raise Refused(409, f"Tag reference exists already: {name}")
    repository.tags[name] = _commit(repository, request.parts["revision"]).sha
    return as_json({})


def preupload(state: State, request: Request) -> Answer:
    """POST /api/models/<repo>/preupload/<branch>: how to upload each file, and the hash of what is at its path"""
    commit = _commit(_writable(state, request), request.parts["revision"])
    answers: list[dict[str, Any]] = []
    for file in request.json()["files"]:
        mode = upload_mode(file["path"], file["size"], base64.b64decode(file["sample"]))
        there = commit.files.get(file["path"])
        known = {"oid": there.etag} if there else {}
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
    return as_json({"files": answers})


def batch(state: State, request: Request) -> Answer:
    """POST /<repo>.git/info/lfs/objects/batch: where to upload the objects that are missing"""
    repository = _writable(state, request)
    answers: list[dict[str, Any]] = []
    for file in request.json()["objects"]:
        answer: dict[str, Any] = {"oid": file["oid"], "size": file["size"]}
        if file["oid"] not in state.objects:
            answer["actions"] = {
                "upload": {"href": f"{state.storage_address}/storage/{file['oid']}?X-Amz-Signature=signed-secret"},
                "verify": {"href": f"{state.address}/{repository.name}.git/info/lfs/verify"},
            }
        answers.append(answer)
    return as_json({"transfer": "basic", "objects": answers})


def put(state: State, request: Request) -> Answer:
    """PUT to the storage, whose addresses are signed: it refuses a token"""
    if request.has_token:
        raise Refused(400, "Only one auth mechanism allowed")
    blob = Blob(request.body, is_lfs=True)
    if blob.sha256 != request.parts["oid"]:
        raise Refused(400, "The Content-SHA256 you specified did not match what we received")
    state.objects[blob.sha256] = blob.content
    return Answer(200, b"", {"ETag": f'"{blob.sha256}"'})


def verify(state: State, request: Request) -> Answer:
    """POST /<repo>.git/info/lfs/verify"""
    _writable(state, request)
    body = request.json()
    if len(state.objects.get(body["oid"], b"")) != body["size"]:
        raise Refused(404, "LFS object not found")
    return as_json({})


def commit(state: State, request: Request) -> Answer:
    """POST /api/models/<repo>/commit/<branch>, NDJSON: makes the whole commit or none"""
    repository = _writable(state, request)
    name = request.parts["revision"]
    head = _commit(repository, name).sha
    lines = [json.loads(line) for line in request.body.splitlines()]
    header, changed, deleted = lines[0]["value"], dict[str, Blob](), set[str]()
    if header.get("parentCommit", head) != head:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            changed[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in state.objects:
                raise Refused(400, f"LFS object {value['oid']} was not uploaded")
            changed[value["path"]] = Blob(state.objects[value["oid"]], is_lfs=True)
        elif line["key"] == "deletedFile":
            deleted.add(value["path"])
        else:
            raise Refused(400, f"this hub does not know {line['key']}")
    made = repository.commit(name, header["summary"], changed, deleted)
    return as_json({"commitUrl": f"{state.address}/{repository.name}/commit/{made.sha}", "commitOid": made.sha})


def resolve(state: State, request: Request) -> Answer:
    """HEAD and GET /<repo>/resolve/<revision>/<path>: the file, or for LFS its address in the storage"""
    found = _commit(_readable(state, request), request.parts["revision"])
    blob = found.files.get(request.parts["path"])
    if blob is None:
        raise Refused(404, "Entry not found", "EntryNotFound", found.sha)
    headers = {"X-Repo-Commit": found.sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if not blob.is_lfs:
        return Answer(200, blob.content, headers)
    headers |= {
        "X-Linked-Size": str(len(blob.content)),
        "X-Linked-ETag": f'"{blob.etag}"',
        "Location": f"{state.storage_address}/storage/{blob.sha256}?X-Amz-Signature=signed-secret",
    }
    return Answer(302, b"", headers)


def storage(state: State, request: Request) -> Answer:
    """GET from the storage"""
    if request.has_token:
        raise Refused(400, "Only one auth mechanism allowed")
    if request.parts["oid"] not in state.objects:
        raise Refused(404, "NoSuchKey")
    return Answer(200, state.objects[request.parts["oid"]], {"ETag": f'"{request.parts["oid"]}"'})


Handler = Callable[[State, Request], Answer]


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry


def _account(request: Request) -> Account:
    if request.account is None:
        raise Refused(401, "Invalid credentials in Authorization header")
    return request.account


def _readable(state: State, request: Request) -> Repository:
    if request.has_token:
        _account(request)
    repository = state.repositories.get(request.repo)
    may_read = request.account is not None and request.account.reads(request.parts["namespace"])
    if repository is None or (repository.is_private and not may_read):
        raise Refused(404 if request.has_token else 401, "Repository not found", "RepoNotFound")
    return repository


def _writable(state: State, request: Request) -> Repository:
    account = _account(request)
    repository = _readable(state, request)
    if not account.writes(request.parts["namespace"]):
        raise Refused(403, "you must use a write token to upload to a repository.")
    return repository


def _commit(repository: Repository, revision: str) -> Commit:
    found = repository.find(revision)
    if found is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found
