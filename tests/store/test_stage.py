import functools
import json
import os
from pathlib import Path
from stat import S_ISDIR

import pytest

from gpt2_rlhf import pipeline
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import digests, files, stage, status
from gpt2_rlhf.store.stage import Stage


def plan(*overrides: str, processes: int = 1) -> dict[str, str]:
    """Directory names by stage."""
    run = pipeline.plan(compose.load([*overrides, f"launch.processes={processes}"]))
    return {name: part.directory.name for name, part in run.plans[0].items()}


BEFORE = functools.cache(plan)  # the plan of some overrides, of files that do not change


def changed(*overrides: str, processes: int = 1) -> set[str]:
    """The stages whose directory the overrides change."""
    before, after = BEFORE(), plan(*overrides, processes=processes)
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
        ("evaluate.toxicity=true", {"evaluate"}),
        ("evaluate.toxicity=false", set()),
        ("evaluate.pairs=8", {"sft", "reward", "judge", "ppo", "evaluate"}),  # their manifests hold what it measures
        ("data.utility=null", {"evaluate"}),
        ("data.template=chat", {"data", "sft", "reward", "judge", "ppo", "evaluate"}),
        ("data.template=null", set()),
        ("sft.args.logging_steps=1", set()),
        ("ppo.args.report_to=tensorboard", set()),
        ("reward.args.save_steps=7", set()),
    ],
)
def test_a_setting_changes_the_stages_it_can_change_and_no_others(override: str, stages: set[str]) -> None:
    assert changed(override) == stages


def test_the_method_is_the_third_stage_and_shares_all_before_it() -> None:
    for method in ("rloo", "dpo"):
        before, after = plan(), plan(f"method={method}")
        assert [*after] == ["data", "sft", "reward", "judge", method, "evaluate"]
        assert [name for name in before if before[name] == after.get(name)] == ["data", "sft", "reward", "judge"]


def test_a_setting_changes_the_methods_that_read_it() -> None:
    names = ("ppo", "rloo", "dpo")
    before = {one: plan(f"method={one}")[one] for one in names}

    def changed_by(override: str) -> set[str]:
        return {one for one in names if plan(f"method={one}", override)[one] != before[one]}

    for shared in ("ppo.args.kl_coef=0.2", "ppo.reward.clip=1.0", "ppo.heldout.prompts=8"):
        assert changed_by(shared) == {"ppo", "rloo"}  # RLOO has PPO's reward, KL penalty, prompts and episodes
    assert changed_by("rloo.args.num_generations=8") == {"rloo"}
    assert changed_by("dpo.args.beta=0.2") == {"dpo"}
    assert changed_by("reward.args.learning_rate=2e-5") == {"ppo", "rloo"}  # DPO learns from the pairs themselves
    assert changed_by("ppo.seeds=[5]") == {*names}


def test_an_edited_function_changes_the_stages_that_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "scores_of_mine.py"

    def changed_by_an_edit(*overrides: str) -> set[str]:
        module.write_text("def score(prompts, answers):\n    return [len(a) for a in answers]\n")
        before = plan(*overrides)
        module.write_text("def score(prompts, answers):\n    return [-len(a) for a in answers]\n")
        after = plan(*overrides)
        return {name for name in before if before[name] != after[name]}

    assert changed_by_an_edit("ppo.reward.function=scores_of_mine:score") == {"ppo", "evaluate"}
    assert changed_by_an_edit("data.utility=scores_of_mine:score") == {"evaluate"}
    by_utility = ("data.utility=scores_of_mine:score", "ppo.heldout.best_by=utility")
    assert changed_by_an_edit(*by_utility) == {"ppo", "evaluate"}
    assert changed_by_an_edit() == set()


def test_the_file_of_the_launcher_counts_by_content(tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text("mixed_precision: 'no'")
    before = plan(f"launch.accelerate_config={config}", processes=2)
    config.write_text("mixed_precision: bf16")
    after = plan(f"launch.accelerate_config={config}", processes=2)
    assert {name for name in before if before[name] == after[name]} == {"data"}


def test_more_processes_change_what_is_trained_and_not_the_data() -> None:
    assert changed(processes=2) == {"sft", "reward", "judge", "ppo", "evaluate"}


def test_sharding_changes_what_is_trained_and_not_the_data() -> None:
    before, after = (plan("launch.processes=2", f"launch.sharded={is_on}") for is_on in ("false", "true"))
    assert {name for name in before if before[name] == after[name]} == {"data"}


@pytest.mark.parametrize(("template", "stages"), [("chat", 6), ("null", 0)])
def test_an_edited_chat_template_counts_where_prompts_are_rendered_by_it(
    template: str, stages: int, tmp_path: Path
) -> None:
    overrides = (f"model.name={tmp_path}", f"data.template={template}")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    before = plan(*overrides)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}!")
    after = plan(*overrides)
    assert sum(before[name] != after[name] for name in before) == stages


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


def built(root: Path, name: str = "sft", needs: dict[str, Stage] | None = None) -> Stage:
    """A finished stage with a model of some bytes."""
    part = Stage(name, root / f"{name}-0", {}, needs or {})
    part.model_dir.mkdir(parents=True)
    for file in ("model/model.safetensors", "model/config.json", "metrics.jsonl", "warnings.log", "ppo.png"):
        (part.directory / file).write_text(f"{file} of {name}")
    stage.write_manifest(part, {"stage": name, "metrics": {"share": 0.5, "by_update": {10: 1.0, 9: float("nan")}}})
    return part


def test_a_stage_is_done_when_its_manifest_is_written(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    part.model_dir.mkdir(parents=True)
    assert stage.fault(part) == stage.NOT_BUILT
    stage.write_manifest(part, {"stage": "sft"})
    assert stage.fault(part) is None
    assert stage.manifest(part)["stage"] == "sft"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model/model.safetensors", None, "model/model.safetensors is missing"),
        ("model/model.safetensors", b"", "model/model.safetensors has 0 bytes, not 30"),
        (
            "model/model.safetensors",
            b"model/model.safetensorz of sft",
            "the content of model/model.safetensors has changed",
        ),
        ("model/config.json", None, "model/config.json is missing"),
        ("metrics.jsonl", b"metrics.jsonl of sfu", "the content of metrics.jsonl has changed"),
        ("manifest.json", b"", "manifest.json is damaged"),
        ("manifest.json", b"{}", "manifest.json is damaged"),
        ("manifest.json", b"[1]", "manifest.json is damaged"),
        ("manifest.json", b"\xff", "manifest.json is damaged"),
        ("warnings.log", None, None),
        ("ppo.png", None, None),
    ],
)
def test_a_stage_that_lost_a_file_or_a_byte_is_not_done(
    tmp_path: Path, file: str, content: bytes | None, words: str | None
) -> None:
    part = built(tmp_path)
    assert stage.fault(part) is None
    if content is None:
        (part.directory / file).unlink()
    else:
        (part.directory / file).write_bytes(content)
    assert stage.fault(part) == words


def test_a_manifest_with_another_figure_or_another_sha_is_damaged(tmp_path: Path) -> None:
    part = built(tmp_path)
    path = part.directory / "manifest.json"
    whole = path.read_text()
    digest = stage.manifest(part)["files"]["model/model.safetensors"]["sha256"]
    for old, new in (('"share": 0.5', '"share": 0.7'), (digest, digest[::-1])):
        path.write_text(whole.replace(old, new))
        assert stage.fault(part) == "manifest.json is damaged"
    path.write_text(whole)
    assert stage.fault(part) is None


def test_large_files_are_read_only_if_they_were_written_to_or_a_stage_builds_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SMALL_BYTES", 8)
    part = built(tmp_path)
    weights, manifest = part.model_dir / "model.safetensors", part.directory / "manifest.json"
    weights.write_bytes(weights.read_bytes()[::-1])
    times = manifest.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert stage.fault(part) == "the content of model/model.safetensors has changed"
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns - 10**9))  # as after a fault of the disk
    assert stage.fault(part) is None
    assert stage.fault(part, read_all=True) == "the content of model/model.safetensors has changed"


def test_a_stage_is_not_done_if_what_it_was_built_on_came_out_differently(tmp_path: Path) -> None:
    sft = built(tmp_path)
    reward = built(tmp_path, "reward", {"sft": sft})
    ppo = built(tmp_path, "ppo", {"sft": sft, "reward": reward})
    assert stage.unfinished([sft, reward, ppo]) == []
    (sft.directory / "metrics.jsonl").write_text("other times")
    stage.write_manifest(sft, {"stage": "sft", "wall_s": 2.0})  # built again with the same weights
    assert stage.unfinished([sft, reward, ppo]) == []
    (sft.model_dir / "model.safetensors").write_text("other weights")
    stage.write_manifest(sft, {"stage": "sft"})
    assert stage.fault(reward) == "it was built on another sft"
    assert stage.unfinished([sft, reward, ppo]) == [reward, ppo]
    assert digests.set_aside(sft.directory).name == "damaged-sft-0"
    assert stage.unfinished([sft, reward, ppo]) == [sft]  # it may come out as before


def test_an_unreadable_file_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = built(tmp_path)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digests, "digest", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\); check its permissions"):
        stage.fault(part)


def test_what_is_set_aside_keeps_what_was_set_aside_before(tmp_path: Path) -> None:
    for name in ("damaged-sft-0", "damaged-sft-0-2", "damaged-sft-0-3"):
        (tmp_path / "sft-0").mkdir()
        assert digests.set_aside(tmp_path / "sft-0").name == name


def test_a_file_system_that_cannot_flush_folders_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        if S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        raise OSError(5, "Input/output error")

    part = built(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    digests.flush(part.directory)
    with pytest.raises(OSError, match="Input/output error"):
        digests.flush(part.model_dir / "config.json")


def test_writing_json_leaves_no_other_file_behind(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": 1})
    files.write_json(tmp_path / "a.json", {"x": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}


def checkpoint(part: Stage, step: int, is_sealed: bool = True, random_states: int = 1) -> Path:
    folder = part.checkpoints_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    for rank in range(random_states):
        (folder / f"rng_state_{rank}.pth").write_text("state")
    if is_sealed:
        digests.seal(folder)
    return folder


def test_the_newest_checkpoint_that_was_written_to_its_end_is_taken(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    assert stage.newest_whole_checkpoint(part, 1) == (None, {})
    checkpoint(part, 9)
    whole = checkpoint(part, 20)
    checkpoint(part, 100, is_sealed=False)
    assert stage.newest_whole_checkpoint(part, 1) == (whole, {})


@pytest.mark.parametrize("file", ["trainer_state.json", "rng_state_0.pth", "files.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 5])
def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(tmp_path: Path, file: str, content: bytes) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    whole, damaged = checkpoint(part, 20), checkpoint(part, 30)
    (damaged / file).write_bytes(content)
    taken, faults = stage.newest_whole_checkpoint(part, 1)
    assert taken == whole
    assert list(faults) == [damaged]
    assert file in faults[damaged]


def test_a_checkpoint_whose_record_names_no_file_is_damaged(tmp_path: Path) -> None:
    folder = checkpoint(Stage("sft", tmp_path / "sft-0", {}, {}), 20)
    (folder / "files.json").write_text("{}")
    assert digests.seal_fault(folder) == "files.json is empty"


def test_a_checkpoint_of_another_number_of_processes_is_not_taken(tmp_path: Path) -> None:
    part = Stage("sft", tmp_path / "sft-0", {}, {})
    folder = checkpoint(part, 20, random_states=2)
    assert stage.newest_whole_checkpoint(part, 1) == (None, {})
    assert stage.newest_whole_checkpoint(part, 2) == (folder, {})


def test_status_tells_done_partial_and_missing_apart_and_says_why(tmp_path: Path) -> None:
    part = pipeline.plan(compose.load([f"output_dir={tmp_path}"])).plans[0]["sft"]
    assert status.status(part) == ("missing", "never built")
    checkpoint(part, 20)
    state, why = status.status(part)
    assert state == "partial"
    assert "checkpoint-20" in why
    record = {"finished_at": "2026-11-23 10:00:00 UTC", "wall_s": 12.4, "inputs": part.inputs}
    for one in (part.needs["data"], part):
        one.directory.mkdir(exist_ok=True)
        stage.write_manifest(one, record)
    assert status.status(part) == ("done", "2026-11-23 10:00:00 UTC, 12 s")
    other = pipeline.plan(compose.load([f"output_dir={tmp_path}", "seed=5"])).plans[0]["sft"]
    state, why = status.status(other)
    assert state == "missing"
    assert why == f"not built: seed is 5, not 0 as in {part.directory.name}"
    (part.directory / "manifest.json").write_text("{")
    assert status.status(part) == ("damaged", "manifest.json is damaged; it will be built again")
    assert status.status(other) == ("missing", "never built")


def test_status_names_the_models_that_an_evaluation_has_asked(tmp_path: Path) -> None:
    part = Stage("evaluate", tmp_path / "evaluate-0", {}, {})
    for name in ("ppo", "base"):
        files.write_json(part.checkpoints_dir / name / "results.json", {})
    assert status.status(part) == ("partial", "goes on after base, ppo")
