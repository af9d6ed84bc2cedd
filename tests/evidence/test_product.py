import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gpt2_rlhf.config import compose
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
    run = RunAt(composed.settings, composed.overrides, composed.yaml, tuple(by_seed), 1)
    object.__setattr__(run, "folder", folder)
    folder.mkdir(exist_ok=True)
    return run


def write(run_dir: Path, stages: dict[str, Stage], *overrides: str) -> dict[str, set[str]]:
    """The files of each folder after a run, as paths below it."""
    folders = product.write(run_of(run_dir, [stages], overrides))
    return {f.name: {p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file()} for f in folders}


def test_each_folder_is_the_stage_s_model_with_card_settings_and_manifests(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    found = write(tmp_path / "run", stages)
    assert found == dict.fromkeys(("model", "sft_model", "reward_model"), FILES | TEXTS)
    for folder, stage in card.FOLDERS.items():
        weights = tmp_path / "run" / folder / "model.safetensors"
        assert weights.samefile(stages[stage].model_dir / "model.safetensors")  # no second copy


def test_what_an_earlier_run_left_is_gone(stages: dict[str, Stage], tmp_path: Path) -> None:
    stale = tmp_path / "run" / "model" / "report"
    stale.mkdir(parents=True)
    (stale / "old.png").write_text("old")
    (stale.parent / "model-00001-of-00002.safetensors").write_text("old")
    assert write(tmp_path / "run", stages)["model"] == FILES | TEXTS
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model", "reward_model", "sft_model"]


def test_pictures_of_the_report_go_with_the_policy_and_are_in_its_card(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    report = tmp_path / "run" / "report"
    report.mkdir(parents=True)
    for name in ("kl.png", "report.md"):
        (report / name).write_text(name)
    found = write(tmp_path / "run", stages)
    assert found["model"] == FILES | TEXTS | {"report/kl.png"}
    assert found["sft_model"] == FILES | TEXTS
    assert "![kl](report/kl.png)" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_writing_it_again_changes_no_byte(stages: dict[str, Stage], tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}

    write(tmp_path / "run", stages)
    before = contents()
    write(tmp_path / "run", stages)
    assert contents() == before


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
    assert written == OmegaConf.create(compose.load(["ppo.args.kl_coef=0.123"]).yaml)


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
