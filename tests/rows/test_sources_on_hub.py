"""The real huggingface_hub client against a small Hub on this machine."""

import dataclasses
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows import sources
from helpers.local_hub import in_process
from helpers.local_hub.store import git_blob
from helpers.pairs import with_settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAIRS = with_settings(name="owner/pairs", revision=COMMIT, path=None)


def packed(*answers: str) -> bytes:
    rows = [{"prompt": "Hi", "chosen": answer, "rejected": "no"} for answer in answers]
    return gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode())


class FakeHub:
    """One data set in the layout of Anthropic/hh-rlhf, and the requests for it."""

    def __init__(self) -> None:
        self.files = {
            "README.md": b"# pairs",
            "helpful-base/train.jsonl.gz": packed("helpful 1", "helpful 2"),
            "helpful-base/test.jsonl.gz": packed("helpful 3"),
            "harmless-base/train.jsonl.gz": packed("harmless 1"),
            "harmless-base/test.jsonl.gz": packed("harmless 2"),
            "red-team-attempts/red_team_attempts.jsonl.gz": packed("never read"),
        }
        self.refusals: dict[str, tuple[int, str]] = {}  # by the start of a path: status and X-Error-Code
        self.requests: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(path)
        for start, (status, code) in self.refusals.items():
            if path.startswith(start):
                return status, {"X-Error-Code": code} if code else {}, b""
        api, resolve = "/api/datasets/owner/pairs", f"/datasets/owner/pairs/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.as_json({"id": "owner/pairs", "sha": COMMIT, "siblings": siblings})
        if path == f"{api}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": git_blob(body)}
                for name, body in self.files.items()
            ]
            return self.as_json(entries)
        if path.startswith(f"{api}/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if path.removeprefix(resolve) in self.files:
            body = self.files[path.removeprefix(resolve)]
            return 200, {"ETag": f'"{git_blob(body)}"', "X-Repo-Commit": COMMIT}, body
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    @staticmethod
    def as_json(value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = fake.answer(self.path.split("?")[0])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    huggingface_hub.close_session()  # a client reads the settings when it is made
    for name, value in in_process.settings(endpoint, tmp_path / "cache").items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield fake
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_data_set_is_read_like_the_same_folder_on_disk(hub: FakeHub, tmp_path: Path) -> None:
    for name, body in hub.files.items():
        (tmp_path / "pairs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pairs" / name).write_bytes(body)
    sources.check(PAIRS)
    on_disk = dataclasses.replace(PAIRS, path=str(tmp_path / "pairs"))
    assert list(sources.read(PAIRS)) == list(sources.read(on_disk))


def test_only_the_files_of_the_chosen_subsets_are_downloaded(hub: FakeHub) -> None:
    read = list(sources.read(dataclasses.replace(PAIRS, subsets=["harmless-base"])))
    assert [raw.values["chosen"] for raw in read] == ["harmless 2", "harmless 1"]
    fetched = {path.partition(f"resolve/{COMMIT}/")[2] for path in hub.requests if "/resolve/" in path}
    assert fetched == {"harmless-base/test.jsonl.gz", "harmless-base/train.jsonl.gz"}


def test_the_check_downloads_nothing_and_makes_one_request(hub: FakeHub) -> None:
    sources.check(PAIRS)
    requested = [path for path in hub.requests if "/datasets/" in path]
    assert requested == [f"/api/datasets/owner/pairs/revision/{COMMIT}"]


def test_a_downloaded_data_set_is_read_without_any_request(hub: FakeHub) -> None:
    before = list(sources.read(PAIRS))
    hub.requests.clear()
    sources.check(PAIRS)
    assert list(sources.read(PAIRS)) == before
    assert sources.not_read(PAIRS) == ["red-team-attempts/red_team_attempts.jsonl.gz"]
    assert hub.requests == []


def test_a_download_that_lacks_a_file_is_refused_without_the_hub_and_finished_with_it_by_reading_alone(
    hub: FakeHub,
) -> None:
    whole = list(sources.read(PAIRS))
    root, *_ = sources._on_hub(PAIRS, download=False)
    assert root is not None
    (root / "helpful-base" / "test.jsonl.gz").unlink()
    hub.refusals["/"] = (503, "")
    with pytest.raises(UserError, match="the Hub answered 503"):
        sources.check(PAIRS)
    hub.refusals.clear()
    hub.requests.clear()
    sources.check(PAIRS)
    assert not [path for path in hub.requests if "/resolve/" in path]
    assert list(sources.read(PAIRS)) == whole


def test_wrong_columns_in_what_was_downloaded_name_the_file(hub: FakeHub) -> None:
    hub.files["helpful-base/train.jsonl.gz"] = gzip.compress(b'{"question": "x"}\n')
    with pytest.raises(UserError, match=r"helpful-base/train\.jsonl\.gz: has the columns question"):
        list(sources.read(PAIRS))


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_revision_that_moves_is_refused_and_its_commit_is_named(hub: FakeHub, revision: str | None) -> None:
    with pytest.raises(UserError, match=rf"expected a commit of owner/pairs.*its newest is data\.revision={COMMIT}"):
        sources.check(dataclasses.replace(PAIRS, revision=revision))


@pytest.mark.parametrize(
    ("changes", "refusal", "message"),
    [
        ({"name": "owner/nothing"}, None, r"data\.name: the Hub has no data set owner/nothing, or it is private"),
        (
            {"name": "my pairs"},
            None,
            r"data\.name: 'my pairs' is not the name of a data set.*set data\.path",
        ),
        ({"name": "./pairs.jsonl"}, None, r"data\.name: '\./pairs\.jsonl' is not the name of a data set on the Hub"),
        ({"revision": "f" * 40}, None, r"data\.revision: owner/pairs has no revision f{40}"),
        ({"subsets": ["helpful"]}, None, r"data\.subsets: owner/pairs on the Hub has no helpful; it has harmless-base"),
        (
            {},
            (401, "RepoNotFound"),
            r"data\.name: the Hub has no data set owner/pairs, or it is private.*hf auth login",
        ),
        ({}, (401, ""), r"data\.name: the Hub answered 401 for owner/pairs; check your token"),
        ({}, (403, "GatedRepo"), r"data\.name: owner/pairs is gated; accept its terms at https"),
        ({}, (500, ""), r"data\.name: the Hub answered 500 for owner/pairs; try again"),
        ({}, (200, ""), r"data\.name: the Hub cannot be reached for owner/pairs \(JSONDecodeError\)"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: FakeHub, changes: dict[str, object], refusal: tuple[int, str] | None, message: str
) -> None:
    if refusal is not None:
        hub.refusals["/api/datasets/owner/pairs"] = refusal
    for use in (sources.check, lambda data: list(sources.read(data))):
        with pytest.raises(UserError, match=message) as refused:
            use(dataclasses.replace(PAIRS, **changes))  # type: ignore[arg-type]  # fields of several types
        assert "\n" not in str(refused.value)


def test_a_hub_that_cannot_be_reached_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nothing listens there
    with pytest.raises(UserError, match=r"the Hub cannot be reached for owner/pairs \(ConnectError\)"):
        sources.check(PAIRS)


def test_offline_mode_without_a_download_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(UserError, match="is not downloaded and HF_HUB_OFFLINE is set"):
        sources.check(PAIRS)
