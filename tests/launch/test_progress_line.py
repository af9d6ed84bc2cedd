import itertools

import pytest

from gpt2_rlhf.launch.progress_line import ProgressLine


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def test_work_of_seconds_shows_a_line_at_least_every_five(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    line, shown_at = ProgressLine("data: train rows", 600), [now[0]]
    for _ in range(60):
        now[0] += 0.5
        line.add(10)
        if capsys.readouterr().out:
            shown_at.append(now[0])
    line.end()
    assert max(after - before for before, after in itertools.pairwise(shown_at)) <= 5
    assert 6 <= len(shown_at) <= 12


def test_the_eta_is_what_is_left_at_the_pace_so_far(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("data: train rows", 400)
    now[0] += 30  # 100 rows took it, 300 are left
    line.add(100)
    assert capsys.readouterr().out == "  data: train rows 100/400  eta 90 s\n"


def test_without_a_total_there_is_no_eta(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("data: rows read")
    now[0] += 30
    line.add(7)
    assert capsys.readouterr().out == "  data: rows read 7\n"


def test_short_work_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("data: train rows", 3)
    line.add(3)
    line.end()
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_one_line_that_is_rewritten_and_cleared(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    line = ProgressLine("data: train rows", 400)
    for _ in range(2):
        now[0] += 30
        line.add(100)
    line.end()
    shown = [part.rstrip() for part in capsys.readouterr().out.split("\r")]
    assert shown == ["", "  data: train rows 100/400  eta 90 s", "  data: train rows 200/400  eta 60 s", "", ""]


def test_only_the_first_process_shows_it(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    line = ProgressLine("sft: rows to tokens", 400)
    now[0] += 30
    line.add(100)
    assert capsys.readouterr().out == ""
