"""SFT and the reward model are measured where they train; a CPU is stood in for by a mark on each model that moved."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from gpt2_rlhf import reward, sft
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.embedded import generator
from gpt2_rlhf.evidence import model_reports
from gpt2_rlhf.models import loading, model_files
from gpt2_rlhf.rows import tables
from gpt2_rlhf.rows.transcripts import pair
from gpt2_rlhf.store.stage import Stage


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each measured model had been moved to the accelerator."""
    moved, found = set[int](), list[bool]()
    models = []  # kept, so that no other gets the same id

    def on_device(model: PreTrainedModel) -> PreTrainedModel:
        models.append(model)
        moved.add(id(model))
        return model

    def spied(name: str) -> None:
        measure = getattr(model_reports, name)

        def spy(model: PreTrainedModel, *rest: Any) -> Any:
            found.append(id(model) in moved)
            return measure(model, *rest)

        monkeypatch.setattr(model_reports, name, spy)

    monkeypatch.setattr(loading, "on_device", on_device)
    spied("heldout_loss")
    spied("reward_report")
    return found


def stages(tmp_path: Path) -> dict[str, Stage]:
    """The stages SFT, whose model is the bundled one, and reward, on a few rows."""
    data = Stage("data", tmp_path / "data", {}, {})
    data.directory.mkdir()
    rows = [pair(values, "embedded", str(number)) for number, values in enumerate(generator.pairs(8, 0))]
    tables.write(data.directory, {"sft": rows, "reward": rows, "test": rows[:2]})
    inputs = {"seed": 0, "processes": 1}
    trained = Stage("sft", tmp_path / "sft", inputs, {"data": data})
    scorer = Stage("reward", tmp_path / "reward", inputs, {"data": data, "sft": trained})
    for stage in (trained, scorer):
        stage.directory.mkdir()
    shutil.copytree(model_files.EMBEDDED_DIR, trained.model_dir)
    return {"sft": trained, "reward": scorer}


def settings(*overrides: str) -> Settings:
    short = (f"{name}.args.{key}" for name in ("sft", "reward") for key in ("max_steps=1", "save_strategy='no'"))
    return compose.load([*short, *overrides]).settings


@pytest.mark.parametrize(("stage", "models"), [("sft", 2), ("reward", 1)])
def test_models_are_measured_on_the_accelerator(stage: str, models: int, tmp_path: Path, measured: list[bool]) -> None:
    {"sft": sft, "reward": reward}[stage].run(settings(), stages(tmp_path)[stage])
    assert measured == [True] * models
