import json
import os
from pathlib import Path

from gpt2_rlhf.store import digests
from gpt2_rlhf.store.stage import Stage
from gpt2_rlhf.store.status import status


def test_a_checkpoint_has_the_time_it_was_written_also_with_a_clock_that_was_set_back(tmp_path: Path) -> None:
    stage = Stage("sft", tmp_path, {}, {})
    checkpoint = stage.checkpoints_dir / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps({}))
    (checkpoint / "rng_state.pth").touch()
    digests.seal(checkpoint)
    year_2100 = 130 * 365.25 * 24 * 3600 - 12 * 3600  # 32 of the 130 years from 1970 are leap years
    os.utime(checkpoint, (year_2100, year_2100))
    assert status(stage) == ("partial", "resumes from checkpoint-7, written 2100-01-01 00:00:00 UTC")


def test_a_renamed_copy_of_a_missing_stage_is_not_what_it_differs_from(tmp_path: Path) -> None:
    renamed = tmp_path / "sft-kept" / "manifest.json"
    renamed.parent.mkdir()
    renamed.write_text(json.dumps({"inputs": {"seed": 1}}))
    assert status(Stage("sft", tmp_path / "sft-1", {"seed": 1}, {})) == ("missing", "never built")
