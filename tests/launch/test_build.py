from pathlib import Path

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.launch import build
from gpt2_rlhf.store.stage import Outcome, Stage, manifest


@pytest.mark.parametrize(("name", "precision"), [("data", None), ("sft", "float32"), ("judge", "float32")])
def test_the_manifest_records_in_which_precision_a_stage_trained_and_what_it_reported_to(
    name: str, precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_quiet_libraries", lambda _: None)  # it changes the logging of this process
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: None)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # otherwise the build sets it for all later tests
    settings = compose.load(["sft.args.bf16=true", "sft.args.report_to=[trackio]"]).settings
    stage = Stage(name, tmp_path / name, {"seed": 0}, {})
    build.build(lambda _settings, _stage: Outcome({}, 0.0), settings, stage)
    assert manifest(stage)["precision"] == precision
    assert manifest(stage)["report_to"] == {"data": None, "sft": ["trackio"], "judge": "none"}[name]
