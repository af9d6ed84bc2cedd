import json
from pathlib import Path

import pytest

from gpt2_rlhf import pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.store import files, stage, status
from gpt2_rlhf.store.stage import Stage


def plan(*overrides: str, processes: int = 1) -> dict[str, str]:
    """Directory names by stage."""
    run = pipeline.plan(compose.load([*overrides, f"launch.processes={processes}"]))
    return {name: part.directory.name for name, part in run.plans[0].items()}


def changed(*overrides: str, processes: int = 1) -> set[str]:
    """The stages whose directory the overrides change."""
    before, after = plan(), plan(*overrides, processes=processes)
    return {name for name in before if before[name] != after[name]}


def test_the_same_settings_name_the_same_directories() -> None:
    assert plan() == plan()


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("ppo.args.kl_coef=0.2", {"ppo", "evaluate"}),
        ("reward.args.learning_rate=2e-5", {"reward", "judge", "ppo", "evaluate"}),
        ("sft.peft.r=4", {"sft", "reward", "judge", "ppo", "evaluate"}),
        ("data.train_pairs=100", {"data", "sft", "reward", "judge", "ppo", "evaluate"}),
        ("seed=1", {"sft", "reward", "judge", "ppo", "evaluate"}),
        ("evaluate.prompts=8", {"evaluate"}),
        ("data.utility=null", {"evaluate"}),
        ("sft.args.logging_steps=1", set()),
        ("ppo.args.report_to=tensorboard", set()),
        ("reward.args.save_steps=7", set()),
    ],
)
def test_a_setting_changes_the_stages_it_can_change_and_no_others(override: str, stages: set[str]) -> None:
    assert changed(override) == stages


def test_more_processes_change_what_is_trained_and_not_the_data() -> None:
    assert changed(processes=2) == {"sft", "reward", "judge", "ppo", "evaluate"}


def test_the_judge_has_another_seed_than_the_reward_model_and_without_a_share_there_is_none() -> None:
    stages = pipeline.plan(compose.load([])).plans[0]
    assert (stages["reward"].seed, stages["judge"].seed) == (0, 1)
    assert "judge" in stages["ppo"].needs
    for without in ("data.shares.judge=0", "data.disjoint=false"):
        assert list(plan(without)) == ["data", "sft", "reward", "ppo", "evaluate"]


def test_local_pairs_count_by_content_and_not_by_place(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "Q?", "chosen": "a", "rejected": "b"})
    for folder in ("one", "two", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(row + ("\n" if folder == "other" else "") + "\n")
    one, two, other = (plan(f"data.path={tmp_path / f / 'train.jsonl'}") for f in ("one", "two", "other"))
    assert one == two
    assert one["data"] != other["data"]


def test_a_stage_without_a_manifest_is_not_done(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    (part.model_dir).mkdir(parents=True)
    assert not stage.is_done(part)
    files.write_json(part.directory / "manifest.json", {"stage": "sft"})
    assert stage.is_done(part)
    assert stage.manifest(part) == {"stage": "sft"}


def test_writing_json_leaves_no_other_file_behind(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})
    files.write_json(tmp_path / "a.json", {"x": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}


def checkpoint(part: Stage, step: int, state: str | None = "{}", random_states: int = 1) -> Path:
    folder = part.checkpoints_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    for rank in range(random_states):
        (folder / f"rng_state_{rank}.pth").touch()
    return folder


def test_the_newest_checkpoint_that_was_written_to_its_end_is_taken(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    assert stage.newest_whole_checkpoint(part, 1) is None
    checkpoint(part, 9)
    whole = checkpoint(part, 20)
    checkpoint(part, 100, state=None)
    checkpoint(part, 110, state='{"global_st')
    checkpoint(part, 120, random_states=0)
    assert stage.newest_whole_checkpoint(part, 1) == whole


def test_a_checkpoint_of_another_number_of_processes_is_not_taken(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    checkpoint(part, 20, random_states=2)
    assert stage.newest_whole_checkpoint(part, 1) is None
    assert stage.newest_whole_checkpoint(part, 2) is not None


def test_status_tells_done_partial_and_missing_apart_and_says_why(tmp_path: Path) -> None:
    part = pipeline.plan(compose.load([f"output_dir={tmp_path}"])).plans[0]["sft"]
    assert status.status(part, 1) == ("missing", "never built")
    checkpoint(part, 20)
    state, why = status.status(part, 1)
    assert state == "partial"
    assert "checkpoint-20" in why
    record = {"finished_at": "2026-11-23 10:00:00 UTC", "wall_s": 12.4, "inputs": part.inputs}
    files.write_json(part.directory / "manifest.json", record)
    assert status.status(part, 1) == ("done", "2026-11-23 10:00:00 UTC, 12 s")
    other = pipeline.plan(compose.load([f"output_dir={tmp_path}", "seed=5"])).plans[0]["sft"]
    state, why = status.status(other, 1)
    assert state == "missing"
    assert why == f"not built: seed is 5, not 0 as in {part.directory.name}"


def test_status_names_the_models_that_an_evaluation_has_asked(tmp_path: Path) -> None:
    part = Stage("evaluate", tmp_path / "evaluate-0", {}, {})
    for name in ("ppo", "base"):
        files.write_json(part.checkpoints_dir / f"{name}.json", {})
    assert status.status(part, 1) == ("partial", "goes on after base, ppo")
