import pytest

from gpt2_rlhf.launch import progress_line
from gpt2_rlhf.launch.progress_line import Doing, counted, shown


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Doing]:
    """What was told to the process that started this one."""
    received: list[Doing] = []
    monkeypatch.setattr(progress_line, "tell", lambda doing: received.append(doing) is None)
    return received


def test_the_eta_is_what_is_left_at_the_pace_so_far(now: list[float], told: list[Doing]) -> None:
    for _ in counted("train rows", [100], 400, size=int):
        now[0] += 30  # 100 rows took it, 300 are left
    assert told == [Doing("train rows 100/400", 90.0, is_part=True), Doing("")]


def test_without_a_total_there_is_no_eta(now: list[float], told: list[Doing]) -> None:
    for _ in counted("rows read", [7], size=int):
        now[0] += 30
    assert told == [Doing("rows read 7", None, is_part=True), Doing("")]


def test_work_is_told_at_most_five_times_a_second_and_its_end_always(now: list[float], told: list[Doing]) -> None:
    for _ in counted("train rows", range(1000), 1000):
        now[0] += 0.01
    assert 10 <= len(told) <= 51
    assert told[-1] == Doing("")


def test_only_the_first_process_tells(now: list[float], told: list[Doing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in counted("rows to tokens", [100], 400, size=int):
        now[0] += 30
    assert told == []


def test_work_outside_of_a_task_prints_a_line_every_five_seconds(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in counted("rows read", [10] * 12, size=int):
        now[0] += 1
    assert capsys.readouterr().out == "  rows read 50\n  rows read 100\n"


def test_batches_are_passed_on_in_order_and_counted_when_they_are_done(now: list[float], told: list[Doing]) -> None:
    passed = []
    for batch in shown("answers of sft")([[3, 1], [2], [0]]):
        passed.append(batch)
        now[0] += 30
    assert passed == [[3, 1], [2], [0]]
    steps = [("answers of sft 1/3", 60.0), ("answers of sft 2/3", 30.0), ("answers of sft 3/3", 0.0)]
    assert told == [*(Doing(*step, is_part=True) for step in steps), Doing("")]
