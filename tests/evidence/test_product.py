import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gpt2_rlhf.config import compose
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import card, product
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import Stage
from helpers import card_run

FILES = {"model.safetensors", *card_run.MODEL_TEXTS, "vocab.json", "merges.txt"}
TEXTS = {"README.md", "config.yaml", "manifest.json"}


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Stage]:
    return card_run.stages(tmp_path, card_run.records())


class RunAt(Run):
    """A run whose results lie in a folder of the test's own."""

    folder: Path

    @property
    def directory(self) -> Path:
        return self.folder


def run_of(folder: Path, by_seed: Sequence[Mapping[str, Stage]], overrides: Sequence[str]) -> Run:
    composed = compose.load(overrides)
    run = RunAt(composed.settings, composed.overrides, composed.values, tuple(by_seed))
    object.__setattr__(run, "folder", folder)
    folder.mkdir(exist_ok=True)
    return run


def write(run_dir: Path, stages: dict[str, Stage], *overrides: str) -> dict[str, set[str]]:
    """The files of each folder after a run, as paths below it."""
    folders = product.write(run_of(run_dir, [stages], overrides))
    return {f.name: {p.relative_to(f).as_posix() for p in f.rglob("[!.]*") if p.is_file()} for f in folders}


def test_each_folder_is_the_stage_s_model_with_card_settings_and_manifests(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    found = write(tmp_path / "run", stages)
    assert found == dict.fromkeys(("model", "sft_model", "reward_model"), FILES | TEXTS)
    for folder, stage in card.folders("ppo").items():
        weights = tmp_path / "run" / folder / "model.safetensors"
        assert weights.samefile(stages[stage].model_dir / "model.safetensors")  # no second copy


def test_what_an_earlier_run_wrote_is_gone(stages: dict[str, Stage], tmp_path: Path) -> None:
    report, shard = tmp_path / "run" / "report" / "report.json", stages["ppo"].model_dir / "model-00001.safetensors"
    report.parent.mkdir(parents=True)
    report.with_name("old.png").write_text("old")
    report.write_text(json.dumps({"pictures": [{"file": "report/old.png", "title": "Old", "alt": "old"}]}))
    shard.write_text("old")
    assert write(tmp_path / "run", stages)["model"] == FILES | TEXTS | {"report/old.png", "model-00001.safetensors"}
    report.write_text(json.dumps({"figures": {}}))  # of an earlier version, which does not list its pictures
    shard.unlink()
    assert write(tmp_path / "run", stages)["model"] == FILES | TEXTS
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model", "report", "reward_model", "sft_model"]


def test_what_the_user_changed_or_added_is_kept_and_named(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", stages)
    folder, kept = tmp_path / "run" / "model", tmp_path / "run" / "model-kept"
    (folder / "README.md").write_text("my own card")
    (folder / "notes.txt").write_text("mine")
    (folder / "tools").mkdir()
    (folder / "tools" / "demo.py").write_text("mine, too")
    (folder / "link").symlink_to("nowhere")
    assert write(tmp_path / "run", stages)["model"] == FILES | TEXTS
    assert (folder / "README.md").read_text() != "my own card"
    assert {p.relative_to(kept).as_posix() for p in kept.rglob("*")} == {
        "README.md",
        "link",
        "notes.txt",
        "tools",
        "tools/demo.py",
    }
    assert (kept / "tools" / "demo.py").read_text() == "mine, too"
    line = f"{folder}: what you changed or added is now in {kept}: README.md, link, notes.txt and 1 more\n"
    assert capsys.readouterr().out == line
    (folder / "README.md").write_text("my second card")
    (folder / "notes.txt").mkdir()  # a file before
    (folder / "notes.txt" / "one").write_text("mine")
    write(tmp_path / "run", stages)
    second = tmp_path / "run" / "model-kept-2"
    assert [(one / "README.md").read_text() for one in (kept, second)] == ["my own card", "my second card"]
    assert (second / "notes.txt" / "one").read_text() == "mine"


def test_an_edit_of_a_json_file_there_does_not_change_the_stage(stages: dict[str, Stage], tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in stages["ppo"].model_dir.iterdir()}
    write(tmp_path / "run", stages)
    for file in (tmp_path / "run" / "model").glob("*.json"):
        file.write_text("edited")
    assert {file: file.read_bytes() for file in stages["ppo"].model_dir.iterdir()} == before


def test_a_copy_of_the_outputs_is_taken_as_it_is(
    stages: dict[str, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", stages)
    shutil.copytree(tmp_path / "run", tmp_path / "copy", copy_function=shutil.copyfile)  # with new times
    write(tmp_path / "copy", stages)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.glob("copy/*-kept"))


def test_pictures_of_the_report_go_with_the_policy_and_are_in_its_card(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    report = tmp_path / "run" / "report"
    report.mkdir(parents=True)
    for name in ("kl.png", "report.md"):
        (report / name).write_text(name)
    picture = {"file": "report/kl.png", "title": "KL", "alt": "it rose"}
    (report / "report.json").write_text(json.dumps({"pictures": [picture]}))
    found = write(tmp_path / "run", stages)
    assert found["model"] == FILES | TEXTS | {"report/kl.png"}
    assert found["sft_model"] == FILES | TEXTS
    shown = {folder: "report/kl.png" in (tmp_path / "run" / folder / "README.md").read_text() for folder in found}
    assert shown == {"model": True, "sft_model": False, "reward_model": False}


def test_writing_it_again_changes_no_byte(stages: dict[str, Stage], tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("[!.]*")) if path.is_file()}

    write(tmp_path / "run", stages)
    before = contents()
    write(tmp_path / "run", stages)
    assert contents() == before


def test_folders_that_are_up_to_date_are_left_as_they_are(
    stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(*overrides: str) -> list[str]:
        before = {name: (tmp_path / "run" / name).stat().st_ino for name in card.folders("ppo")}
        write(tmp_path / "run", stages, *overrides)
        return [name for name, number in before.items() if (tmp_path / "run" / name).stat().st_ino != number]

    write(tmp_path / "run", stages)
    every = list(card.folders("ppo"))
    assert replaced() == []
    templates = tmp_path / "templates"
    shutil.copytree(card.TEMPLATES, templates)
    monkeypatch.setattr(card, "TEMPLATES", templates)
    assert replaced() == []
    (templates / "sft.md").write_text((templates / "sft.md").read_text().replace("was fine-tuned", "was tuned"))
    assert replaced() == ["sft_model"]
    assert replaced("seed=4") == every
    assert replaced("publish.repo_id=ada/model") == every
    assert replaced("publish.repo_id=ada/model") == []
    (tmp_path / "run" / "model" / "README.md").unlink()
    assert replaced("publish.repo_id=ada/model") == ["model"]
    (stages["reward"].model_dir / "model.safetensors").write_text("other weights")
    assert replaced("publish.repo_id=ada/model") == ["reward_model"]
    monkeypatch.setattr(card, "project", lambda: "other software")
    assert replaced("publish.repo_id=ada/model") == every
    assert replaced("publish.repo_id=ada/model") == []


def test_nothing_in_it_names_a_folder_of_the_machine(tmp_path: Path) -> None:
    records = card_run.records()
    records["data"]["metrics"]["source"] = "/home/alice/pairs.jsonl"
    overrides = (
        "output_dir=/home/alice/out",
        "model.name=/home/alice/my model",
        "model.tokenizer='~alice/tok'",
        "data=hh_rlhf",
        "data.path='../alice/pairs.jsonl'",
        "launch.accelerate_config=/home/alice/fsdp.yaml",
    )
    write(tmp_path / "run", card_run.stages(tmp_path, records), *overrides)
    for file in (tmp_path / "run").rglob("*"):
        if file.name in TEXTS:
            assert "alice" not in file.read_text()
            assert str(tmp_path) not in file.read_text()
    written = OmegaConf.load(tmp_path / "run" / "model" / "config.yaml")
    assert (written.data.path, written.model.name, written.output_dir) == ("pairs.jsonl", "my model", "out")
    assert (
        json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())["stages"]["data"]["metrics"]["source"]
        == "pairs.jsonl"
    )


def test_the_settings_are_those_of_the_run(stages: dict[str, Stage], tmp_path: Path) -> None:
    write(tmp_path / "run", stages, "ppo.args.kl_coef=0.123")
    written = OmegaConf.load(tmp_path / "run" / "model" / "config.yaml")
    assert written.ppo.args.kl_coef == 0.123
    assert written == compose.load(["ppo.args.kl_coef=0.123"]).values


def test_the_manifests_are_those_of_all_stages_and_seeds(tmp_path: Path) -> None:
    records = card_run.records()
    second: dict[str, Any] = {name: {**records[name], "seed": 8} for name in ("ppo", "evaluate")}
    first = card_run.stages(tmp_path, records)
    other = {
        **first,
        **{k: v for k, v in card_run.stages(tmp_path / "b", {**records, **second}).items() if k in second},
    }
    overrides = ["ppo.seeds=[3,8]"]
    product.write(run_of(tmp_path / "run", [first, other], overrides))
    written = json.loads((tmp_path / "run" / "model" / "manifest.json").read_text())
    assert written["command"] == "make pipeline 'ppo.seeds=[3,8]'"
    assert written["stages"] == {**records, "ppo-seed8": second["ppo"], "evaluate-seed8": second["evaluate"]}
    assert "with PPO's seeds 3, 8" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_command_reproduces_the_run_anywhere_and_publishes_nothing() -> None:
    def command(overrides: list[str]) -> str:
        return run_of(Path(), [], overrides).portable_command

    overrides = ["seed=4", "publish.repo_id=ada/model", "data.path='/home/alice/my pairs.jsonl'", "output_dir=out"]
    assert command(overrides) == """make pipeline 'data.path='"'"'my pairs.jsonl'"'"'' output_dir=out seed=4"""
    assert command(["model.name=openai-community/gpt2"]) == "make pipeline model.name=openai-community/gpt2"


@pytest.mark.parametrize("folder", card.folders("ppo"))
def test_damaged_or_lost_weights_are_not_pushed(tmp_path: Path, folder: str) -> None:
    records = card_run.records()
    for name in card.folders("ppo").values():
        content = f"model.safetensors of {name}".encode()
        records[name]["weights_sha256"] = {"model.safetensors": hashlib.sha256(content).hexdigest()}
    write(tmp_path / "run", card_run.stages(tmp_path, records))
    weights = tmp_path / "run" / folder / "model.safetensors"
    product.check(weights.parent)
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[::-1]), weights.unlink):
        damage()
        with pytest.raises(UserError, match=r"model.safetensors: not the weights that were trained; the command of"):
            product.check(weights.parent)
