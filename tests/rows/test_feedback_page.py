"""What the page shows of a run, and to whom it is served; `make chat-check` uses it in a browser."""

import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.rows import feedback


@pytest.fixture(scope="module")
def feedback_page() -> Any:
    """The module, imported here, since every worker of pytest would wait for Gradio's import."""
    from gpt2_rlhf.rows import feedback_page as page

    return page


def write(folder: Path, *prompts: str) -> None:
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")


def test_examples_are_the_first_questions_that_stand_alone(feedback_page: Any, tmp_path: Path) -> None:
    alone = [f"\n\nHuman: Question {number}?\n\nAssistant:" for number in range(9)]
    later = f"{alone[0]} Yes.{alone[1]}"
    system = f"\n\nSystem: Be kind.{alone[2]}"
    write(tmp_path, later, system, *alone)
    assert feedback_page._examples(tmp_path) == [[f"Question {number}?"] for number in range(6)]
    assert feedback_page._examples(None) == []


def test_the_curve_is_in_the_page_itself_and_may_be_missing(feedback_page: Any, tmp_path: Path) -> None:
    assert feedback_page._curve(None) == feedback_page._curve(tmp_path) == ""
    for path, content in ((tmp_path / "ppo" / "ppo.png", b"all"), (tmp_path / "report" / "training.png", b"one")):
        path.parent.mkdir()
        path.write_bytes(content)
        picture = base64.b64encode(content).decode()
        assert f'src="data:image/png;base64,{picture}"' in feedback_page._curve(tmp_path)


class Page:
    """In place of Gradio's, which leaves event loops open."""

    def __init__(self) -> None:
        self.launched: dict[str, Any] = {}

    def launch(self, **given: Any) -> tuple[None, str, str | None]:
        self.launched = given
        return None, "http://127.0.0.1:7860/", "https://everybody" if given["share"] else None


@pytest.mark.parametrize("share", [False, True])
def test_only_this_machine_reaches_the_page_unless_it_is_shared(
    feedback_page: Any, share: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page: Any = Page()
    monkeypatch.setattr(feedback_page, "build", lambda *_: page)
    # not threading.Event itself, which threads of libraries wait for too
    monkeypatch.setattr(feedback_page, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None)))
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setattr(feedback, "start", lambda _: None)
    feedback_page.serve(compose.load([f"chat.share={share}"]).settings)
    assert (page.launched["server_name"], page.launched["share"]) == ("127.0.0.1", share)
    assert ("https://everybody" in capsys.readouterr().out) == share
    assert os.environ["no_proxy"] == "example.org,127.0.0.1"
