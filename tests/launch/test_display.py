import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch import tasks
from gpt2_rlhf.launch.display import Display
from gpt2_rlhf.launch.progress_line import Doing, tell
from gpt2_rlhf.launch.tasks import Task

SFT, PPO = Path("sft-0"), Path("ppo-0")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


class Terminal(io.StringIO):
    """A terminal of 60 columns that knows the three controls that are used: carriage return, up, erase to the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr(sys, "stdout", self)
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setenv("TERM", "xterm")

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines, row, column = [""], 0, 0
        for up, control, text in re.findall(r"\x1b\[(\d+)A|(\r|\n|\x1b\[J)|([^\r\n\x1b]+)", self.getvalue()):
            if up:
                row -= int(up)
            elif control == "\r":
                column = 0
            elif control == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif control:
                lines[row:] = [lines[row][:column]]
            else:
                lines[row] = lines[row][:column] + text + lines[row][column + len(text) :]
                column += len(text)
        return lines


def test_a_terminal_has_one_line_on_the_run_and_one_for_each_task_below_what_is_printed(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    display = Display(lambda running, took: f"{len(running)} run, {len(took)} took")
    display.start(SFT, "sft")
    display.refresh()
    display.start(PPO, "ppo")
    display.receive(PPO, Doing("3/32", 160.0, ["reward 0.5"]))
    display.receive(SFT, ("stdout", "a line of its own"))
    now[0] += 5
    display.refresh()
    assert terminal.screen() == [
        "a line of its own",
        "2 run, 0 took",
        "  sft  5 s so far",
        "  ppo 3/32  eta 3 min  reward 0.5",
    ]
    display.end(SFT)
    print("sft done")
    display.refresh()
    assert terminal.screen() == ["a line of its own", "sft done", "1 run, 1 took", "  ppo 3/32  eta 3 min  reward 0.5"]
    display.end(PPO)
    assert terminal.screen() == ["a line of its own", "sft done", ""]


def test_figures_that_do_not_fit_a_terminal_are_left_out_whole(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    display = Display()
    display.start(PPO, "ppo")
    display.receive(PPO, Doing("3/32", 30.0, ["reward 0.642", "KL 1.87", "held-out utility 1.09", "held-out judge 2"]))
    display.refresh()
    assert terminal.screen() == ["  ppo 3/32  eta 30 s  reward 0.642  KL 1.87"]


def test_the_eta_falls_while_a_step_takes_long_and_is_left_out_once_it_has_passed(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    display = Display()
    display.start(PPO, "ppo")
    display.receive(PPO, Doing("3/32", 30.0))
    for seconds, line in ((12, "  ppo 3/32  eta 18 s"), (40, "  ppo 3/32")):
        now[0] += seconds
        display.refresh()
        assert terminal.screen() == [line]


def test_the_eta_of_a_part_is_shown_but_is_not_that_of_the_task(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    display = Display(lambda running, took: f"{running[SFT].elapsed_s:g} s, in all {running[SFT].whole_s}")
    display.start(SFT, "sft")
    now[0] += 5
    display.receive(SFT, Doing("held-out loss 1/4", 15.0, is_part=True))
    display.refresh()
    assert terminal.screen() == ["5 s, in all None", "  sft held-out loss 1/4  eta 15 s"]
    display.receive(SFT, Doing("1/40", 200.0))
    display.refresh()
    assert terminal.screen() == ["5 s, in all 205.0", "  sft 1/40  eta 3 min"]


def test_a_log_gets_a_line_on_each_task_every_five_seconds_and_figures_once(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    display = Display(lambda running, took: "stages 2 and 5 of 6")
    display.start(SFT, "sft")
    display.start(PPO, "ppo")
    for second in range(15):
        if second == 4:
            display.receive(PPO, Doing("3/32", 160.0, ["reward 0.5"]))
        display.refresh()
        now[0] += 1
    assert capsys.readouterr().out.splitlines() == [
        "stages 2 and 5 of 6: sft, ppo",
        "  sft  5 s so far",
        "  ppo 3/32  eta 3 min  reward 0.5",
        "  sft  10 s so far",
        "  ppo 3/32  eta 3 min",
    ]
    assert not display.is_live


def test_of_the_processes_of_a_launcher_the_first_alone_shows_what_runs(
    now: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    display = Display()
    display.start(SFT, "sft")
    now[0] += 60
    display.refresh()
    assert capsys.readouterr().out == ""


def test_all_that_a_task_prints_on_a_terminal_stands_above_the_lines_and_is_left_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    monkeypatch.setattr(sys, "stderr", terminal)

    def action() -> None:
        print("a line of its own", flush=True)
        tell(Doing("1/2"))
        time.sleep(0.3)  # until it is shown
        raise UserError("data: a fault")

    with pytest.raises(SystemExit, match="2"):
        tasks.run(Task("sft", tmp_path, action))
    assert "  sft 1/2" in terminal.getvalue()
    assert terminal.screen() == ["a line of its own", "error: data: a fault", ""]
