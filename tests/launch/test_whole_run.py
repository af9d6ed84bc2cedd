from pathlib import Path

import pytest

from gpt2_rlhf.launch import whole_run
from gpt2_rlhf.launch.whole_run import Running
from gpt2_rlhf.store.stage import Stage

SECONDS = {"sft": 10.0, "reward": 40.0, "judge": 30.0, "ppo": 75.0, "evaluate": 20.0}


def stages(folder: Path) -> list[Stage]:
    """The stages of a run; the data stage, which they all need, is built already."""
    data = Stage("data", folder / "data-0", {}, {})
    sft = Stage("sft", folder / "sft-0", {}, {"data": data})
    reward, judge = (Stage(name, folder / f"{name}-0", {}, {"data": data, "sft": sft}) for name in ("reward", "judge"))
    ppo = Stage("ppo", folder / "ppo-0", {}, {"data": data, "sft": sft, "reward": reward, "judge": judge})
    return [sft, reward, judge, ppo, Stage("evaluate", folder / "evaluate-0", {}, {**ppo.needs, "ppo": ppo})]


def expected_of(run: list[Stage]) -> dict[Path, float]:
    return {stage.directory: SECONDS[stage.name] for stage in run}


def test_stages_end_one_after_the_other_or_side_by_side_where_they_do_not_need_each_other(tmp_path: Path) -> None:
    run = stages(tmp_path)
    expected = expected_of(run)
    assert list(whole_run.ends(run, expected, at_once=1).values()) == [10, 50, 80, 155, 175]
    assert list(whole_run.ends(run, expected, at_once=2).values()) == [10, 50, 40, 125, 145]
    assert list(whole_run.ends(run[3:], expected, at_once=2).values()) == [75, 95]  # the others are built


def test_what_has_no_eta_is_expected_to_be_as_much_slower_as_what_was_built_and_what_runs(tmp_path: Path) -> None:
    sft, reward, judge, _, _ = run = stages(tmp_path)
    expected = expected_of(run)
    assert whole_run.left_s(run, expected, {sft.directory: Running(4.0, None)}, {}, at_once=2) == 145 - 4
    took = {sft.directory: 25.0}
    # 30 s so far and 45 s to go make 75 s in place of 40, and 25 s in place of 10: all twice as slow
    running = {reward.directory: Running(30.0, 45.0), judge.directory: Running(30.0, None)}
    assert whole_run.left_s(run, expected, running, took, at_once=2) == 45 + 2 * (75 + 20)
    assert whole_run.left_s(run, expected, {}, dict.fromkeys(expected, 1.0), at_once=2) == 0


def test_the_eta_of_a_part_is_the_least_that_a_stage_still_takes_and_says_nothing_of_others(tmp_path: Path) -> None:
    sft, *_ = run = stages(tmp_path)
    for elapsed_s, left_s in ((1.0, 9.0), (6.0, 5.0), (50.0, 5.0)):  # of 10 expected
        running = {sft.directory: Running(elapsed_s, 5.0, is_part=True)}
        assert whole_run.left_s(run, expected_of(run), running, {}, at_once=2) == left_s + 135


def test_nothing_is_said_of_a_run_with_a_stage_of_which_nothing_is_expected(tmp_path: Path) -> None:
    run = stages(tmp_path)
    assert whole_run.left_s(run, expected_of(run[1:]), {}, {}, at_once=1) is None


def test_what_is_expected_is_read_as_it_was_written_also_of_two_runs_in_one_store(tmp_path: Path) -> None:
    run = stages(tmp_path)
    assert whole_run.read(run) == {}
    assert whole_run.write(run, expected_of(run), at_once=2) == 145
    other = Stage("ppo", tmp_path / "ppo-1", {}, run[3].needs)
    whole_run.write([other], {other.directory: 7.0}, at_once=1)
    assert whole_run.read([*run, other]) == {**expected_of(run), other.directory: 7.0}


@pytest.mark.parametrize("content", ["{", "[]", '{"ppo-0": {"own_s": 1.0, "later_s": 2.0}}'])
def test_a_file_that_cannot_be_read_is_no_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / ".expected.json").write_text(content)
    assert whole_run.read(stages(tmp_path)) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (3000.0, "50 min"), (9000.0, "2.5 h"), (1e8, "1,157 days")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert whole_run.in_words(seconds) == text
