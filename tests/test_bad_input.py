"""Bad input gets one line that names the place, exit code 2, and nothing is trained or written but the log."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_rlhf import building, pipeline
from gpt2_rlhf.config.system_faults import exit_with_one_line
from gpt2_rlhf.launch import tasks
from gpt2_rlhf.models.model_files import EMBEDDED_DIR

REPOSITORY = Path(__file__).resolve().parents[1]
PAIR = {"prompt": "How do I rest?", "chosen": "Sleep well.", "rejected": "No."}


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the pipeline with faulty overrides and return its one line."""

    def no_training(*_: object) -> None:
        raise AssertionError("a stage was started")

    monkeypatch.setattr(tasks, "run_all", no_training)
    monkeypatch.setattr(building, "_step", no_training)

    def run(*overrides: str, output_dir: Path = tmp_path / "outputs") -> str:
        argv = [f"output_dir={output_dir}", *overrides]
        with pytest.raises(SystemExit) as stopped:
            exit_with_one_line(lambda: pipeline.run(argv, "evaluate"))
        printed = capsys.readouterr()
        assert stopped.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert not list(output_dir.glob("stages/*/*"))
        return printed.err

    return run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ppo.args.kl_coeff=0.2"], "ppo.args.kl_coeff: there is no such setting; did you mean ppo.args.kl_coef?"),
        (["sft.args.learning_rate=fast"], "sft.args.learning_rate: fast; expected a number"),
        (["experiment=gpt3"], "experiment: there is no 'gpt3'"),
        (["nothing/model=gpt2"], "nothing/model: there is no such setting"),
        (["reward.args.output_dir=here"], "reward.args.output_dir: cannot be set here"),
        (["data.shares={sft: 0.5, reward: 0.5}"], "data.shares"),
        (["data.shares.sft=0.9"], "data.shares"),
        (["ppo.args.total_episodes=0"], "ppo.args.total_episodes: 0; expected a number above 0"),
        (["sft.args.per_device_train_batch_size=-1"], "sft.args.per_device_train_batch_size: -1"),
        (["evaluate.temperature=0"], "evaluate.temperature: 0"),
        (["seed=-1"], "seed: -1; expected a whole number from 0"),
        (["ppo.kl.target_nats=0"], "ppo.kl.target_nats: 0"),
        (["ppo.reward.function=no:thing"], "ppo.reward.function: 'no:thing' cannot be imported"),
        (["ppo.reward.function=math:dist", "ppo.reward.normalise=true"], "ppo.reward.normalise: it takes the mean"),
        (["reward.peft.r=-8"], "reward.peft.r: -8"),
        (["data.max_prompt_tokens=500"], "but the model has 512 positions; lower either"),
        (["ppo.args.response_length=400"], "ppo.args.response_length: 256 prompt tokens"),
        (["model.name=./no/such/folder"], "there is no folder no/such/folder"),
        (["model.name=not a hub name"], "is not the name of a model on the Hub"),
        (["model=gpt2"], "openai-community/gpt2 is not downloaded and HF_HUB_OFFLINE is set"),
        (["data=hh_rlhf"], "Anthropic/hh-rlhf"),
        (["data=hh_rlhf", "data.path=/no/such/file.jsonl"], "data.path=/no/such/file.jsonl: does not exist"),
        (["data.train_pairs=null"], "data.train_pairs, data.test_pairs: null"),
        (["publish.repo_id=nobody"], "publish.repo_id: 'nobody'; expected <user or organisation>/<name>"),
        (["publish.repo_id=some/body"], "there is no Hub token"),
    ],
)
def test_a_faulty_setting_is_refused_before_training(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: list[str], words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert words in fails(*overrides)


def test_a_data_file_with_other_columns_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"question": "?", "answer": "!"}) + "\n")
    error = fails("data=hh_rlhf", f"data.path={path}")
    assert "question" in error
    assert "chosen" in error


def test_an_empty_data_file_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("")
    assert "pairs.jsonl" in fails("data=hh_rlhf", f"data.path={path}")


def test_a_data_file_of_an_unknown_kind_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.xlsx"
    path.write_text("x")
    assert ".jsonl" in fails("data=hh_rlhf", f"data.path={path}")


def test_a_data_file_that_is_not_json_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("chosen, rejected\n")
    assert "pairs.jsonl" in fails("data=hh_rlhf", f"data.path={path}")


def test_an_output_folder_that_cannot_be_written_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "output_dir: " in fails(output_dir=tmp_path / "file" / "outputs")


def model_copy(folder: Path) -> Path:
    folder.mkdir()
    for file in EMBEDDED_DIR.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_without_one_of_its_files_is_refused(
    fails: Callable[..., str], tmp_path: Path, missing: str
) -> None:
    folder = model_copy(tmp_path / "model")
    (folder / missing).unlink()
    assert missing.removeprefix("model") in fails(f"model.name={folder}")


def test_weights_that_are_cut_short_are_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert "is cut short" in fails(f"model.name={folder}")


def test_weights_that_are_something_else_are_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"a web page instead of a model")
    assert "is not a safetensors file" in fails(f"model.name={folder}")


def test_a_model_config_that_is_not_json_is_refused(fails: Callable[..., str], tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model")
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in fails(f"model.name={folder}")


def test_make_passes_the_exit_code_on_and_shows_no_traceback(tmp_path: Path) -> None:
    command = ["make", "--no-print-directory", "config", "ppo.args.kl_coeff=0.2", f"output_dir={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].endswith("did you mean ppo.args.kl_coef?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ['it\'s 5 $HOME `id` "quoted" #x', "[a, b]"])
def test_make_passes_values_on_unchanged(value: str) -> None:
    quoted = value if value.startswith("[") else "'" + value.replace("'", "\\'") + "'"
    key = "data.subsets" if value.startswith("[") else "sft.args.run_name"
    command = ["make", "--no-print-directory", "config", f"{key}={quoted}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    from omegaconf import OmegaConf

    assert OmegaConf.select(OmegaConf.create(done.stdout), key) == (["a", "b"] if value.startswith("[") else value)


def test_help_is_quick_and_lists_the_experiments() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "gpt2_rlhf.pipeline", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert "experiment=gpt2_hh | gpt2_hh_500 | overoptimised | quickstart" in done.stdout
    assert "| torch\n" not in done.stderr
