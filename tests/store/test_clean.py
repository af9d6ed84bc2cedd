import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.store import clean, digests, locks
from gpt2_rlhf.store.stage import Stage, write_manifest


def stage_at(root: Path, name: str, is_finished: bool = True) -> Stage:
    part = Stage(name.partition("-")[0], root / "stages" / name, {}, {})
    (part.checkpoints_dir / "checkpoint-2").mkdir(parents=True)
    part.model_dir.mkdir()
    (part.model_dir / "model.safetensors").write_text("weights")
    if is_finished:
        write_manifest(part, {"stage": part.name})
    return part


@pytest.fixture
def ended() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_clean_deletes_what_killed_runs_left_and_nothing_of_finished_ones(
    tmp_path: Path, ended: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, partial = stage_at(tmp_path, "sft-1"), stage_at(tmp_path, "reward-1", is_finished=False)
    damaged, built = stage_at(tmp_path, "ppo-1"), stage_at(tmp_path, "judge-1", is_finished=False)
    aside = digests.set_aside(damaged.directory)
    lost = stage_at(tmp_path, "sft-2")  # the next run sets it aside
    (lost.model_dir / "model.safetensors").unlink()
    run = tmp_path / "runs" / "0123"
    run.mkdir(parents=True)
    left = [
        run / f".model.{ended}.part",
        run / "report" / f".index.html.{ended}.part",
        whole.directory / f".manifest.json.{ended}.part",
    ]
    kept = [
        run / f".model.{os.getpid()}.part",
        run / f".notes.{ended}",  # a name such as .notes.2026
        run / "checkpoints",
        run / ".hidden.txt",
        run / "report" / "index.html",
        lost.model_dir,
        whole.model_dir,
    ]
    for path in (*left, *kept[:-2]):
        path.mkdir(parents=True)
    (tmp_path / f".latest.{ended}.part").symlink_to(run)
    locks.lock_path(whole).touch()
    locks.lock_path(Stage("evaluate", tmp_path / "stages" / "evaluate-1", {}, {})).touch()
    with locks.held([built]):
        clean.clean(str(tmp_path))
        assert built.directory.exists()
        assert locks.lock_path(built).exists()
    assert f"left {built.directory}: a run is building it\n" in capsys.readouterr().out
    gone = [
        *left,
        partial.directory,
        aside,
        whole.checkpoints_dir,
        locks.lock_path(whole),
        tmp_path / f".latest.{ended}.part",
    ]
    assert [path for path in gone if os.path.lexists(path)] == []
    assert [path for path in kept if not path.exists()] == []
    assert {path.name for path in tmp_path.glob("stages/*.lock")} <= {"judge-1.lock"}
    clean.clean(str(tmp_path))
    capsys.readouterr()
    clean.clean(str(tmp_path))
    assert capsys.readouterr().out == "nothing to delete\n"


def test_no_run_can_start_to_build_a_stage_that_clean_is_deleting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = stage_at(tmp_path, "sft-1", is_finished=False)
    held: list[bool] = []
    monkeypatch.setattr(clean.shutil, "rmtree", lambda path: held.append(locks.is_held(partial)))
    clean.clean(str(tmp_path))
    assert held == [True]


def test_nothing_is_deleted_while_a_run_has_locked_a_stage_that_has_no_directory_yet(tmp_path: Path) -> None:
    stage_at(tmp_path, "sft-1")
    begun = Stage("reward", tmp_path / "stages" / "reward-1", {}, {})
    with locks.held([begun]), pytest.raises(UserError, match="reward-1: a run is building it"):
        clean.clean_all(str(tmp_path))


def test_prune_deletes_finished_stages_that_no_run_shows_once_that_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, unused, partial = (
        stage_at(tmp_path, "sft-1"),
        stage_at(tmp_path, "sft-2"),
        stage_at(tmp_path, "ppo-1", False),
    )
    (tmp_path / "runs" / "0123").mkdir(parents=True)
    (tmp_path / "runs" / "0123" / "sft").symlink_to(Path("..", "..", "stages", "sft-1"))
    answer(monkeypatch, "n\n")
    clean.prune(str(tmp_path))
    assert unused.directory.exists()
    assert "nothing was deleted\n" in capsys.readouterr().out
    with locks.held([partial]), pytest.raises(UserError, match="a run is building it, and may need what would be"):
        clean.prune(str(tmp_path))
    answer(monkeypatch, "y\n")
    clean.prune(str(tmp_path))
    assert f"deleted {unused.directory}\n" in capsys.readouterr().out
    assert (shown.directory.exists(), unused.directory.exists(), partial.directory.exists()) == (True, False, True)
    clean.prune(str(tmp_path))
    assert capsys.readouterr().out == "nothing to delete\n"


def test_clean_all_asks_and_without_an_answer_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = stage_at(tmp_path, "sft-1")
    for folder in ("runs/0123", "sweeps/4567", "jobs/sft-1"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "latest").symlink_to(Path("runs", "0123"))
    (tmp_path / "mine.txt").write_text("mine")
    answer(monkeypatch, "")
    with pytest.raises(UserError, match="nothing was deleted: nobody answered y; in a script"):
        clean.clean_all(str(tmp_path))
    assert part.directory.exists()
    answer(monkeypatch, "yes\n")
    clean.clean_all(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("command", [clean.clean, clean.prune, clean.clean_all])
def test_it_is_said_that_there_is_nothing_to_delete(
    command: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(str(tmp_path / "outputs"))
    assert capsys.readouterr().out == "nothing to delete\n"
