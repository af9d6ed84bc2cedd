"""Publish to a hub that fails: the result is one whole commit, or one line and no commit, and it can be repeated."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2_rlhf import publish
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub import repository
from gpt2_rlhf.hub.tries import Patience
from helpers import finished_run
from helpers.finished_run import HASTE, TOKEN
from helpers.local_hub.faults import Fault
from helpers.local_hub.server import Hub

REPO = "somebody/demo"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        finished_run.use_hub(running, tmp_path / "hf", monkeypatch)
        finished_run.write(tmp_path / "outputs")
        yield running


@pytest.fixture
def push(tmp_path: Path) -> Callable[..., None]:
    """Return a function that publishes the run with short waits, and never loads it, since the weights are random."""

    def run(patience: Patience = HASTE, checks: publish.Checks = ()) -> None:
        publish.push(
            finished_run.planned([f"output_dir={tmp_path / 'outputs'}", f"publish.repo_id={REPO}"]), patience, checks
        )

    return run


def is_whole(hub: Hub) -> bool:
    """Return whether one commit, on top of the first of the hub, holds all files and has the tag of the run."""
    repository = hub.repositories[REPO]
    head, *before = repository.history()
    expected = {".gitattributes", "README.md", "config.json", "model.safetensors", "report/reward.png"}
    return len(before) == 1 and set(head.files) == expected and repository.tags == {"run-0123456789ab": head.sha}


def has_nothing(hub: Hub) -> bool:
    """Return whether the hub holds nothing of the run: there is no repository, or only its first commit."""
    return REPO not in hub.repositories or len(hub.repositories[REPO].history()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault("commit", "status", status=500),
        Fault("commit", "status", status=500, times=3),
        Fault("commit", "html", status=502),
        Fault("commit", "reset"),
        Fault("commit", "lost"),
        Fault("commit", "late"),
        Fault("commit", "hang"),
        Fault("commit", "status", status=412),
        Fault("put", "reset"),
        Fault("put", "lost"),
        Fault("put", "hang"),
        Fault("whoami", "hang"),
        Fault("whoami", "status", status=503),
        Fault("create", "lost"),
        Fault("validate", "html", status=502),
        Fault("preupload", "reset"),
        Fault("tree", "status", status=500),
        Fault("tag", "lost"),
        Fault("storage", "truncate"),
        Fault("storage", "flip"),
        Fault("resolve", "status", status=503),
    ],
    ids=lambda f: f"{f.call}-{f.kind}-{f.status if f.kind in ('status', 'html') else ''}x{f.times}",
)
def test_after_a_transient_fault_there_is_one_whole_commit(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str], fault: Fault
) -> None:
    hub.fail(fault)
    push(checks=[repository.fetch] if fault.call in ("storage", "resolve") else [])
    assert is_whole(hub)
    assert hub.faults_left() == 0
    printed = capfd.readouterr()
    assert "published: somebody/demo at commit" in printed.out
    assert printed.err == ""
    assert TOKEN not in printed.out
    assert "signed-secret" not in printed.out


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("commit", "status", status=500, times=99), "the Hub answered 500 Internal Server Error to POST"),
        (Fault("commit", "hang", times=99), "the Hub fell silent (ReadTimeout) (try 2 of 2)"),
        (Fault("put", "status", status=401, times=99), "the Hub answered 401"),
        (Fault("preupload", "status", status=403, times=99), "the Hub answered 403 Forbidden"),
        (Fault("create", "status", status=402, times=99), "the account's plan does not allow it"),
    ],
    ids=lambda value: f"{value.call}-{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
def test_a_lasting_fault_publishes_nothing_and_the_next_command_succeeds(
    hub: Hub, push: Callable[..., None], fault: Fault, words: str
) -> None:
    hub.fail(fault)
    with pytest.raises(UserError) as caught:
        push(replace(HASTE, tries=2))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "all is still on disk, this tries again: make publish output_dir=" in str(caught.value)
    assert str(caught.value).endswith("publish.repo_id=somebody/demo")
    assert has_nothing(hub)
    hub.heal()
    push()
    assert is_whole(hub)


@pytest.mark.parametrize(("call", "status"), [("commit", 403), ("create", 401), ("tree", 404), ("commit", 400)])
def test_a_fault_that_another_try_cannot_mend_is_tried_once(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str], call: str, status: int
) -> None:
    hub.fail(Fault(call, "status", status=status, times=99))
    with pytest.raises(UserError, match=f"the Hub answered {status}"):
        push()
    assert hub.calls(call) == 1
    assert "try 2" not in capfd.readouterr().out


def test_a_bad_card_is_named_and_tried_once(hub: Hub, push: Callable[..., None], tmp_path: Path) -> None:
    card = tmp_path / "outputs" / "latest" / "model" / "README.md"
    card.write_text("---\nlicense: mine-alone\n---\n")
    with pytest.raises(UserError, match=r'Invalid metadata in README\.md\. - "license" must be one of'):
        push()
    assert hub.calls("validate") == 1
    assert has_nothing(hub)
    card.write_text(finished_run.CARD)
    push()
    assert is_whole(hub)


def test_the_wait_that_the_hub_requests_is_honoured(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail(Fault("commit", "status", status=429, retry_after_s=1))
    push()
    assert "publish: try 2 of 5 in 1 s: the Hub answered 429" in capfd.readouterr().out


def test_a_download_that_always_differs_from_what_was_pushed_is_a_failure(hub: Hub, push: Callable[..., None]) -> None:
    hub.fail(Fault("storage", "flip", times=99))
    with pytest.raises(UserError, match=r"was pushed, but the check of it failed: model\.safetensors came back"):
        push(replace(HASTE, tries=2), [repository.fetch])
    hub.heal()
    push(checks=[repository.fetch])
    assert is_whole(hub)  # the second command made no second commit


def test_a_step_that_takes_too_long_is_killed_and_tried_again(
    hub: Hub, push: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail(Fault("commit", "hang"))
    push(replace(HASTE, silence_s=60, try_s=1))
    assert "push was not done after" in capfd.readouterr().out
    assert is_whole(hub)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_push_that_is_killed_leaves_nothing_running_and_the_next_command_succeeds(
    hub: Hub, tmp_path: Path, signum: int
) -> None:
    hub.fail(Fault("put", "hang"))
    newest = finished_run.write_evaluated(tmp_path / "evaluated", [])
    overrides = [f"output_dir={newest.parent}", f"publish.repo_id={REPO}"]
    command = [sys.executable, "-m", "gpt2_rlhf.publish", *overrides]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert reached(lambda: hub.calls("put") == 1)
    child = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()[0]
    killed.send_signal(signum)
    _, stderr = killed.communicate()
    assert (killed.returncode, stderr.strip()) in [
        (-signum, b""),
        (128 + signal.SIGINT, b"interrupted; run the same command again to go on"),
        (128 + signal.SIGTERM, b"stopped by SIGTERM; run the same command again to go on"),
    ]
    assert reached(lambda: not is_running(int(child)))
    assert has_nothing(hub)
    publish.main(finished_run.planned(overrides), HASTE, [])
    head, *before = hub.repositories[REPO].history()
    assert len(before) == 1
    assert set(head.files) == {".gitattributes", *(one.name for one in (newest / "model").glob("[!.]*"))}


def reached(condition: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true within half a minute."""
    end = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_running(pid: int) -> bool:
    """Return whether the process runs; one that has ended and that no process waits for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
