"""What the pipeline does with finished stages that are lost or damaged; here steps write a file and train nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_rlhf import building, pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.launch import tasks
from gpt2_rlhf.launch.tasks import Task
from gpt2_rlhf.store.stage import Stage, write_manifest

Run = Callable[[], list[str]]  # the names of the stages that a run built
ALL = ["data", "sft", "reward", "judge", "ppo", "evaluate"]


def in_this_process(
    given: Sequence[Task],
    at_once: int,
    on_end: Callable[[Task, int], bool] = lambda task, code: True,
    overall: object = None,
    meanwhile: object = None,
) -> dict[Path, int]:
    """Run tasks one after the other, as tasks.run_all does in processes."""
    codes: dict[Path, int] = {}
    for task in given:
        task.action()
        codes[task.directory] = 0
        if not on_end(task, 0):
            break
    return codes


@pytest.fixture
def contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each step writes as its model."""
    made = dict.fromkeys(ALL, "weights")

    def build(step: Any, settings: Any, stage: Stage) -> None:
        stage.model_dir.mkdir(parents=True, exist_ok=True)
        (stage.model_dir / "model.safetensors").write_text(made[stage.name])
        write_manifest(stage, {"inputs": stage.inputs, "metrics": {}})

    step = SimpleNamespace(run=None)
    monkeypatch.setattr(building, "_step", lambda _name: step)
    monkeypatch.setattr(building, "build_stage", build)
    monkeypatch.setattr(tasks, "run_all", in_this_process)
    monkeypatch.setattr(building, "check_before_training", lambda settings, stages: None)
    monkeypatch.setattr(building, "show_found", lambda job: None)
    return made


@pytest.fixture
def run(contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    built: list[list[str]] = []
    monkeypatch.setattr(pipeline, "finish", lambda run, stages, wall_s: built.append([one.name for one in stages]))

    def run_once() -> list[str]:
        pipeline.run([f"output_dir={tmp_path}"])
        return built.pop()

    return run_once


def folder(root: Path, name: str) -> Path:
    return next(path for path in root.glob(f"stages/{name}-*") if path.is_dir())


@pytest.mark.parametrize("name", ["data", "judge"])
def test_a_lost_or_damaged_stage_is_set_aside_and_it_alone_is_built_again(
    run: Run, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == ALL
    assert run() == []
    weights = folder(tmp_path, name) / "model" / "model.safetensors"
    weights.unlink()
    capsys.readouterr()
    assert run() == [name]
    aside = tmp_path / "stages" / f"damaged-{weights.parents[1].name}"
    line = f"{name}: model/model.safetensors is missing; it is built again, and until `make clean` the old one is kept"
    assert f"{line} as {aside}\n" in capsys.readouterr().out
    assert (aside / "manifest.json").is_file()
    assert weights.read_text() == "weights"
    weights.write_text("weightz")
    assert run() == [name]
    assert (aside.with_name(f"{aside.name}-2") / "model" / "model.safetensors").read_text() == "weightz"


def test_stages_built_on_one_that_comes_out_differently_are_built_again(
    run: Run, contents: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == ALL
    (folder(tmp_path, "reward") / "manifest.json").write_text("{")
    contents["reward"] = "other weights"  # as on a GPU, where sums are in another order each time
    capsys.readouterr()
    assert run() == ["reward", "ppo", "evaluate"]
    assert "ppo: it was built on another reward; it is built again" in capsys.readouterr().out
    assert run() == []


def test_no_stage_is_built_on_one_that_must_itself_be_built_again(
    run: Run, contents: dict[str, str], tmp_path: Path
) -> None:
    assert run() == ALL
    (folder(tmp_path, "sft") / "manifest.json").write_text("{")
    (folder(tmp_path, "ppo") / "manifest.json").unlink()  # as after a kill
    contents["sft"] = "other weights"  # the reward model, which is whole, was built on the weights before
    assert run() == ["sft", "reward", "judge", "ppo", "evaluate"]
    assert run() == []


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_sweep_compares_no_stages_that_were_built_on_others_than_now(
    contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    built: list[str] = []
    build = building.build_stage
    monkeypatch.setattr(building, "build_stage", lambda *of: (build(*of), built.append(of[2].name)))
    points = [compose.load([f"output_dir={tmp_path}", f"ppo.args.kl_coef={value}"]) for value in ("0.1", "0.2")]
    planned = [pipeline.plan(point) for point in points]

    def build_points() -> list[str]:
        for part in [planned] if parallel > 1 else [[one] for one in planned]:
            assert building.build_all(part, parallel) == {}
        found = sorted(built)
        built.clear()
        return found

    assert build_points() == sorted([*ALL, "ppo", "evaluate"])
    (folder(tmp_path, "sft") / "manifest.json").write_text("{")
    (planned[1].plans[0]["ppo"].directory / "manifest.json").unlink()  # as after a kill
    contents["sft"] = "other weights"  # the reward model, which is whole, was built on the weights before
    assert build_points() == sorted([*ALL[1:], "ppo", "evaluate"])
    assert build_points() == []


def test_a_point_that_fails_stops_no_other_after_a_stage_came_out_differently(
    contents: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [compose.load([f"output_dir={tmp_path}", f"ppo.args.kl_coef={value}"]) for value in ("0.1", "0.2")]
    planned = [pipeline.plan(point) for point in points]
    building.build_all(planned, 2)
    (folder(tmp_path, "sft") / "manifest.json").write_text("{")
    for one in planned:
        (one.plans[0]["ppo"].directory / "manifest.json").unlink()  # as after a kill
    contents["sft"] = "other weights"
    starts_more: list[tuple[bool, bool]] = []

    def second_fails(given: Sequence[Task], at_once: int, on_end: Any = None, *_: Any, **__: Any) -> dict[Path, int]:
        if not given or given[0].name == "check":
            return {task.directory: 0 for task in given}
        given[0].action()
        starts_more.append((on_end(given[0], 0), on_end(given[1], 1)))
        return {given[0].directory: 0, given[1].directory: 1}

    monkeypatch.setattr(tasks, "run_all", second_fails)
    building.build_all(planned, 2)
    # none is started that needs the reward model, which was built on the weights before; those that run are not stopped
    assert starts_more[0] == (False, True)


def test_a_disk_that_damages_what_was_just_written_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = building.build_stage

    def build_and_damage(step: Any, settings: Any, stage: Stage) -> None:
        build(step, settings, stage)
        if stage.name == "sft":
            (stage.model_dir / "model.safetensors").write_text("w")

    monkeypatch.setattr(building, "build_stage", build_and_damage)
    with pytest.raises(
        UserError, match=r"sft-\w+: model/model.safetensors has 1 bytes, not 7, just after it was built"
    ):
        run()
