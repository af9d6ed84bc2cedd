import os
from pathlib import Path

import pytest

from gpt2_rlhf.launch import whole_run
from gpt2_rlhf.launch.whole_run import Expected
from gpt2_rlhf.store import files
from gpt2_rlhf.store.stage import Stage

SECONDS = {"sft": 10.0, "reward": 40.0, "judge": 30.0, "ppo": 75.0, "evaluate": 20.0}


def stages(folder: Path) -> list[Stage]:
    """The stages of a run; the data stage, which they all need, is built already."""
    data = Stage("data", folder / "data-0", {}, {})
    sft = Stage("sft", folder / "sft-0", {}, {"data": data})
    reward, judge = (Stage(name, folder / f"{name}-0", {}, {"data": data, "sft": sft}) for name in ("reward", "judge"))
    ppo = Stage("ppo", folder / "ppo-0", {}, {"data": data, "sft": sft, "reward": reward, "judge": judge})
    return [sft, reward, judge, ppo, Stage("evaluate", folder / "evaluate-0", {}, {**ppo.needs, "ppo": ppo})]


def finish(stage: Stage, wall_s: float) -> None:
    files.write_json(stage.directory / "manifest.json", {"wall_s": wall_s})


def test_stages_end_one_after_the_other_or_side_by_side_where_they_do_not_need_each_other(tmp_path: Path) -> None:
    run = stages(tmp_path)
    assert list(whole_run.ends(run, SECONDS, at_once=1).values()) == [10, 50, 80, 155, 175]
    assert list(whole_run.ends(run, SECONDS, at_once=2).values()) == [10, 50, 40, 125, 145]
    assert list(whole_run.ends(run[3:], SECONDS, at_once=2).values()) == [75, 95]  # the others are built


def test_what_follows_is_scaled_by_what_was_built_and_by_the_stage_itself() -> None:
    expected = Expected(own_s=40.0, later_s=95.0, built_s=10.0, took_s=25.0)
    # 30 s so far and 45 s to go make 75 s in place of 40, and 25 s in place of 10: all twice as slow
    assert expected.rest_s(elapsed_s=30.0, eta_s=45.0) == 45 + 2 * 95


def test_a_stage_reads_what_follows_it_and_what_those_before_it_took(tmp_path: Path) -> None:
    sft, reward, judge, ppo, _ = run = stages(tmp_path)
    assert whole_run.read(sft) is None
    assert whole_run.write(run, SECONDS, at_once=2) == 145
    assert whole_run.read(sft) == Expected(own_s=10, later_s=135, built_s=0, took_s=0)
    for stage, wall_s in ((sft, 12.0), (reward, 44.0), (judge, 30.0)):
        finish(stage, wall_s)
    assert whole_run.read(ppo) == Expected(own_s=75, later_s=20, built_s=80, took_s=86)
    os.utime(judge.directory / "manifest.json", (0, 0))  # built by an earlier run, at another pace
    assert whole_run.read(ppo) == Expected(own_s=75, later_s=20, built_s=50, took_s=56)


def test_two_runs_in_one_store_keep_what_each_expects(tmp_path: Path) -> None:
    run = stages(tmp_path)
    for stage in run[:3]:
        finish(stage, 1.0)
    whole_run.write(run, SECONDS, at_once=1)
    other = Stage("ppo", tmp_path / "ppo-1", {}, run[3].needs)
    whole_run.write([other], {"ppo": 7.0}, at_once=1)
    assert [one.own_s for one in (whole_run.read(run[3]), whole_run.read(other)) if one] == [75, 7]


def test_a_file_that_cannot_be_read_is_no_fault(tmp_path: Path) -> None:
    run = stages(tmp_path)
    whole_run.write(run, SECONDS, at_once=1)
    (tmp_path / ".expected.json").write_text("{")
    assert whole_run.read(run[0]) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (3000.0, "50 min"), (9000.0, "2.5 h"), (1e8, "1,157 days")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert whole_run.in_words(seconds) == text
