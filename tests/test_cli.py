"""Every command by its name, and what a command does only once."""

import io
import json
import runpy
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpt2_rlhf import cli, pipeline, publish
from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import product, report, terminal
from gpt2_rlhf.models import estimates, speed
from gpt2_rlhf.store.run import Run
from gpt2_rlhf.store.stage import write_manifest
from helpers import card_run, report_run


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.main(arguments)
    return capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    assert all(f"  {verb}" in text and about in text for verb, about in cli.VERBS.items())
    assert printed(capsys) == text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_command_says_what_it_does_and_names_the_groups(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, verb, "--help")
    assert cli.VERBS[verb] in text
    assert ("experiment=gpt2_hh | gpt2_hh_500" in text) == (verb not in ("chat", "clean", "prune"))
    assert ("--all" in text) == (verb == "clean")
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("typed", ["pipelin", "sft::", "run"])
def test_an_unknown_command_is_one_line_that_names_the_commands(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([typed])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: there is no command {typed!r}; expected one of pipeline, data, sft,")
    assert error.count("\n") == 1


def test_config_prints_every_value_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "config", "seed=7")
    assert text == compose.yaml(compose.load(["seed=7"]).values)
    assert "seed: 7\n" in text


@pytest.mark.parametrize("verb", ["config", "status"])
def test_values_that_a_run_refuses_are_refused_when_they_are_shown(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([verb, "evaluate.temperature=0", f"output_dir={tmp_path}"])
    shown = capsys.readouterr()
    assert shown.err == "error: evaluate.temperature: 0.0; expected a number above 0\n"
    assert ("temperature: 0.0\n" in shown.out) == (verb == "config")  # which shows where it is set


def test_a_dry_run_says_what_each_stage_takes_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_LONG_ENOUGH_S", 0.0)
    text = printed(capsys, "pipeline", f"output_dir={tmp_path / 'outputs'}", "dry_run=true", "ppo.args.max_steps=3")
    header, *stages, whole, end = text.splitlines()
    assert header.split() == ["stage", "state", "rows", "updates", "memory", "time", "directory"]
    cells = {line.split()[0]: line.split() for line in stages}
    assert list(cells) == ["data", "sft", "reward", "judge", "ppo", "evaluate"]
    assert all(line[1] == "missing" for line in cells.values())
    assert cells["sft"][2:4] == ["1,000", "63"]  # a tenth of 10,000 rows, 16 a step
    assert cells["ppo"][3] == "3"
    assert cells["reward"][-1].startswith(f"{tmp_path}/outputs/stages/reward-")
    assert whole.startswith("about ")
    assert end.startswith("device: ")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_one_stage_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_LONG_ENOUGH_S", 0.0)
    text = printed(capsys, "sft", f"output_dir={tmp_path}", "dry_run=true")
    assert [line.split()[0] for line in text.splitlines()] == ["stage", "data", "sft", "about", "device:"]


def test_a_dry_run_of_a_sweep_shows_each_point_and_which_stages_it_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_LONG_ENOUGH_S", 0.0)
    text = printed(capsys, "sweep", f"output_dir={tmp_path / 'outputs'}", "dry_run=true", "ppo.args.kl_coef=0.05,0.1")
    lines = [line.split() for line in text.splitlines() if line.startswith(tuple(cli.STAGES))]
    assert [line[1] for line in lines] == ["missing"] * 6 + ["shared"] * 4 + ["missing"] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("same", ["seed=0,00", "sft.args.logging_steps=1,2", "launch.threads=1,2"])
def test_a_sweep_whose_points_are_the_same_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], same: str
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["sweep", f"output_dir={tmp_path}", same])
    assert " are the same run: no stage reads what they differ in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_model_too_large_for_the_memory_is_refused_after_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_LONG_ENOUGH_S", 0.0)
    monkeypatch.setattr(estimates, "free_bytes", lambda: (500_000_000, False))
    with pytest.raises(SystemExit):
        cli.main(["sft", f"output_dir={tmp_path}", "dry_run=true"])
    printed = capsys.readouterr()
    assert "\nsft " in printed.out
    assert printed.err.startswith("error: sft needs about ")
    assert printed.err.count("\n") == 1


def test_a_text_that_the_terminal_cannot_encode_is_printed_with_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    cli.main(["config", "card.author=José"])
    sys.stdout.flush()
    assert b"author: Jos\\xe9\n" in printed.getvalue()


def test_status_of_a_run_that_was_never_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "status", f"output_dir={tmp_path}")
    assert text.count("missing") == 6
    assert "never built" in text
    assert max(map(len, text.splitlines()[1:])) <= 80  # the first names the folder


def test_ctrl_c_during_the_imports_of_a_command_ends_it_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Any] = []

    class Cli(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name != "main":
                raise AttributeError(name)
            handlers.append(signal.getsignal(signal.SIGINT))
            return lambda: handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setitem(sys.modules, "gpt2_rlhf.cli", Cli("gpt2_rlhf.cli"))
    runpy.run_module("gpt2_rlhf", run_name="__main__")
    assert handlers == [signal.SIG_DFL, signal.default_int_handler]
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    script = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["scripts"]["gpt2-rlhf"]
    module, _, function = script.partition(":")
    handlers.clear()
    found = runpy.run_module(module)  # imported, and not run yet
    assert handlers == [signal.SIG_DFL]
    found[function]()
    assert handlers == [signal.SIG_DFL, signal.default_int_handler]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pipeline", "sft", "publish"])
def test_a_step_started_as_a_module_is_the_command_of_its_name(name: str) -> None:
    command = [sys.executable, "-m", f"gpt2_rlhf.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert cli.VERBS[name] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("dry_run", "last"), [("false", "push"), ("true", "show")])
def test_a_pipeline_that_publishes_composes_once_writes_its_products_once_and_leaves_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry_run: str, last: str
) -> None:
    calls: list[str] = []

    def counted(name: str, call: Any) -> Any:
        return lambda *given, **named: (calls.append(name), call(*given, **named))[1]

    stages = card_run.stages(tmp_path, card_run.records())
    for stage in stages.values():
        write_manifest(stage, card_run.records()[stage.name])
        stage.checkpoints_dir.mkdir()  # as after a kill just after the manifest

    def plan(composed: compose.Composed, last: str) -> Run:
        return Run(composed.settings, composed.overrides, composed.values, (stages,))

    monkeypatch.setattr(compose, "load", counted("compose", compose.load))
    monkeypatch.setattr(product, "write", counted("product", product.write))
    monkeypatch.setattr(pipeline, "plan", plan)
    monkeypatch.setattr(publish, "check", lambda settings: None)
    monkeypatch.setattr(publish, "_push", lambda *_: calls.append("push"))
    monkeypatch.setattr(publish, "show", lambda _: calls.append("show"))
    monkeypatch.setattr(report, "write", lambda *_: None)
    monkeypatch.setattr(terminal, "story", lambda summary: "")
    pipeline.run([f"output_dir={tmp_path}", "publish.repo_id=somebody/demo", f"publish.dry_run={dry_run}"])
    assert calls == ["compose", "product", last]
    assert not any(stage.checkpoints_dir.exists() for stage in stages.values())


def test_show_prints_all_tables_of_the_newest_run_or_the_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = report_run.write(tmp_path / "runs" / "1")
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "summary.json").write_text(json.dumps(found))
    every, one = (printed(capsys, "show", f"output_dir={tmp_path}", *name) for name in ([], ["reward_model"]))
    assert "| Paired difference" in every
    assert "| Calibration and length bias" in one
    assert "| Paired difference" not in one


@pytest.mark.parametrize(
    ("arguments", "words", "kept"),
    [
        (["table=reward"], "table: there is no 'reward'; did you mean reward_model?", {}),
        (["seed=7"], "summary.json: there is no finished run; run `make pipeline` first, with the same overrides", {}),
        ([], "latest: made by another version; run `make pipeline` again, with the same overrides", {"evaluation": {}}),
    ],
)
def test_show_says_in_one_line_what_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, kept: dict[str, Any]
) -> None:
    _, found = report_run.write(tmp_path / "runs" / "1")
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "summary.json").write_text(json.dumps(found | kept))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["show", f"output_dir={tmp_path}", *arguments])
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
