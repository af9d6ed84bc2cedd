from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from gpt2_rlhf import publish
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.settings import Publish

PRIVATE = Publish(repo_id="somebody/demo", private=True)


class FakeHub:
    """Stands for HfApi: notes what is asked of it."""

    role = "write"
    private = True
    calls: list[tuple[str, Any]] = []  # noqa: RUF012 - one list for all instances is the point

    def whoami(self) -> dict[str, Any]:
        return {"name": "somebody", "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", (repo_id, private)))

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        self.calls.append(("upload", folder_path))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    class Hub(FakeHub):
        calls: list[tuple[str, Any]] = []  # noqa: RUF012

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    return Hub


def test_a_push_creates_the_repository_as_asked_and_uploads_the_folder(hub: type[FakeHub], tmp_path: Path) -> None:
    assert publish.push(PRIVATE, tmp_path) == "https://hub/somebody/demo/commit/1"
    assert hub.calls == [("create", ("somebody/demo", True)), ("upload", tmp_path)]


def test_a_token_that_may_only_read_is_refused(hub: type[FakeHub]) -> None:
    hub.role = "read"
    with pytest.raises(UserError, match="may only read"):
        publish.check(PRIVATE)


def test_no_token_is_refused(hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no Hub token"):
        publish.check(PRIVATE)


def test_an_existing_public_repository_is_not_pushed_to_when_private_was_asked(
    hub: type[FakeHub], tmp_path: Path
) -> None:
    hub.private = False
    with pytest.raises(UserError, match=r"publish\.private: True"):
        publish.push(PRIVATE, tmp_path)
    assert [name for name, _ in hub.calls] == ["create"]


def test_a_hub_that_fails_is_one_line_that_does_not_name_the_token(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(self: Any, **_: Any) -> None:
        raise RuntimeError("502 Bad Gateway\nwith more lines")

    monkeypatch.setattr(hub, "upload_folder", fail)
    with pytest.raises(UserError, match="502 Bad Gateway; nothing is lost") as caught:
        publish.push(PRIVATE, tmp_path)
    assert "\n" not in str(caught.value)
    assert "hf_secret" not in str(caught.value)
