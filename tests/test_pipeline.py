"""The pipeline as a user runs it: through make or `python -m`, in processes of its own, on the bundled default."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gpt2_rlhf import pipeline as planning
from gpt2_rlhf import ppo, reward, sft
from gpt2_rlhf.config import compose
from gpt2_rlhf.embedded import generator
from gpt2_rlhf.models import room
from helpers import commands, finished_run
from helpers.commands import REPOSITORY, Command
from helpers.local_hub import card_rules
from helpers.local_hub.server import Hub
from helpers.small_run import SMALL, copy_stages

TRAINED = ("sft", "reward", "judge", "ppo")

pytestmark = pytest.mark.slow


def pipeline(output_dir: Path, *overrides: str, verb: str = "pipeline") -> subprocess.CompletedProcess[str]:
    return commands.run(verb, f"output_dir={output_dir}", *SMALL, *overrides)


def new_process(output_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """As `pipeline`, with all imports, for what depends on them."""
    command = [sys.executable, "-m", "gpt2_rlhf.pipeline", f"output_dir={output_dir}", *SMALL, *overrides]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)


def start(output_dir: Path) -> Command:
    return commands.start("pipeline", f"output_dir={output_dir}", *SMALL)


def wait_for_checkpoint(output_dir: Path, stage: str, run: Command) -> None:
    deadline = time.monotonic() + 120
    while not list(output_dir.glob(f"stages/{stage}-*/checkpoints/checkpoint-*/files.json")):
        assert run.poll() is None, run.wait().stdout
        assert time.monotonic() < deadline
        time.sleep(0.01)


def summary(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "latest" / "summary.json").read_text(encoding="utf-8"))


def weights(output_dir: Path, stages: Sequence[str] = TRAINED) -> dict[str, str]:
    """The sha256 of each stage's weights, from its manifest."""
    manifests = {s: json.loads((output_dir / "latest" / s / "manifest.json").read_text()) for s in stages}
    return {stage: record["weights_sha256"]["model.safetensors"] for stage, record in manifests.items()}


def reused(output_dir: Path) -> dict[str, bool]:
    return {name: stage["reused"] for name, stage in summary(output_dir)["stages"].items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a small run that `make pipeline` has finished; its largest size was written beside it."""
    output_dir = tmp_path_factory.mktemp("finished") / "outputs"
    command, peak = ["make", "pipeline", f"output_dir={output_dir}", *SMALL], 0
    with (output_dir.parent / "out").open("w") as out, (output_dir.parent / "err").open("w") as err:
        run = subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=err)
        while run.poll() is None:
            peak = max(peak, size_bytes(output_dir))
            time.sleep(0.02)
    (output_dir.parent / "peak_bytes").write_text(str(peak))
    assert run.returncode == 0, (output_dir.parent / "out").read_text() + (output_dir.parent / "err").read_text()
    assert (output_dir.parent / "err").read_text() == ""
    return output_dir


def size_bytes(folder: Path) -> int:
    """The size of the files in a folder that a run writes to and deletes from."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def test_make_pipeline_trains_all_stages_and_leaves_a_summary(finished: Path) -> None:
    found = summary(finished)
    assert list(found["stages"]) == ["data", "sft", "reward", "judge", "ppo", "evaluate"]
    assert not any(reused(finished).values())
    assert found["evaluation"]["prompts"] == 16
    assert set(found["evaluation"]["models"]) == {"base", "sft", "ppo", "best_of_n"}
    assert found["evaluation"]["models"]["ppo"]["judge_reward"]["n"] == 16
    assert found["reward_model"]["pairs"] == 48
    assert found["work_s"] < found["wall_s"]


def test_the_disk_space_that_is_required_before_training_is_what_training_takes_at_most(finished: Path) -> None:
    composed = compose.load([f"output_dir={finished}", *SMALL])
    trained = [stage for stage in planning.plan(composed).stages if stage.name in TRAINED]
    step = {"sft": sft, "reward": reward, "judge": reward, "ppo": ppo}
    plan = [(stage, step[stage.name].check(composed.settings, stage)) for stage in trained]
    measured = int((finished.parent / "peak_bytes").read_text())
    # up to a third more, since here the checkpoint of the best policy is one of the newest two
    assert measured < room.peak_bytes(composed.settings, plan) < 1.7 * measured


def test_the_memory_that_is_said_before_training_is_within_a_quarter_of_what_it_takes(finished: Path) -> None:
    lines = (finished.parent / "out").read_text().splitlines()
    for stage in TRAINED:
        said_mb = int(re.search(rf"^memory: .*\b{stage} (\d+) MB", "\n".join(lines), re.MULTILINE)[1])  # type: ignore[index]
        measured_mib = json.loads((finished / "latest" / stage / "manifest.json").read_text())["peak_rss_mib"]
        assert said_mb * 1e6 / 2**20 == pytest.approx(measured_mib, rel=0.25)
    assert any(re.match(r"about \S+ (s|min): sft .*, reward .*, judge .*, ppo .*, evaluate ", line) for line in lines)


def test_a_dry_run_of_a_finished_run_shows_it_done_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    planning.run([f"output_dir={finished}", *SMALL, "dry_run=true"])
    stages = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [line[0] for line in stages] == ["data", *TRAINED, "evaluate"]
    assert all(line[1] == "done" for line in stages)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_samples_are_one_line_per_prompt(finished: Path) -> None:
    lines = (finished / "latest" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["group"] for line in lines] == ["example"] * 2 + ["heldout"] * 16
    assert set(json.loads(lines[0])["answers"]) == {"base", "sft", "ppo", "best_of_n"}


def test_a_second_run_trains_nothing_and_shows_the_same_figures(finished: Path) -> None:
    before = summary(finished)
    report_written = (finished / "latest" / "report" / "index.html").stat().st_mtime_ns
    started = time.monotonic()
    again = new_process(finished)
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started < 10
    assert all(reused(finished).values())
    assert f"Report:  {finished / 'latest' / 'report' / 'index.html'}\n" in again.stdout
    assert (finished / "latest" / "report" / "index.html").stat().st_mtime_ns == report_written
    after = summary(finished)
    for part in ("sft", "reward_model", "evaluation"):
        assert after[part] == before[part]


def test_another_kl_coefficient_trains_only_ppo_and_leaves_a_plot_and_tensorboard_events(finished: Path) -> None:
    done = pipeline(finished, "ppo.args.kl_coef=0.2", "ppo.args.report_to=tensorboard")
    assert done.returncode == 0, done.stderr
    assert list((finished / "latest" / "ppo" / "tensorboard").glob("events.out.tfevents.*"))
    assert (finished / "latest" / "ppo" / "ppo.png").stat().st_size > 10_000
    ran = {name for name, was_reused in reused(finished).items() if not was_reused}
    assert ran == {"ppo", "evaluate"}
    assert pipeline(finished).returncode == 0  # `latest` is again the run that the other tests look at


def test_a_guard_that_stops_ppo_hands_on_the_best_policy_and_says_so(finished: Path) -> None:
    done = pipeline(finished, "ppo.guard.max_kl_nats=1e-9")
    assert done.returncode == 0, done.stderr
    assert "the guard stopped PPO: update 2: KL to SFT" in done.stdout
    assert "The SFT model was handed on." in " ".join(done.stdout.split())
    found = summary(finished)["ppo"]
    assert (found["updates"], found["kept_update"]) == (2, 0)
    assert found["heldout"]["kept"] == found["heldout"]["start"]
    assert weights(finished)["ppo"] == weights(finished)["sft"]
    assert pipeline(finished).returncode == 0


def test_both_models_are_published_in_one_commit_each_and_the_snippet_of_the_card_runs(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repositories = ("publish.repo_id=somebody/demo", "publish.reward_repo_id=somebody/demo-reward")
    with Hub() as hub:
        finished_run.use_hub(hub, tmp_path / "hf", monkeypatch)
        printed = ""
        for verb, words in (
            ("pipeline", "compared by hash and loaded back"),
            ("publish", "which held these files already"),
        ):
            command = (verb, f"output_dir={finished}", *SMALL, *repositories)
            done = commands.call(finished_run.command, hub.address, tmp_path / "hf", *command)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count(words) == 2, done.stdout
            printed += done.stdout + done.stderr
        for name in ("somebody/demo", "somebody/demo-reward"):
            head, *before = hub.repositories[name].history()
            assert len(before) == 1  # the empty repository
            assert hub.repositories[name].is_private
            assert {"config.yaml", "manifest.json", "model.safetensors", "tokenizer.json"} <= set(head.files)
            card = head.files["README.md"].content.decode()
            assert card_rules.errors(card) == card_rules.warnings(card) == []
        assert any(file.startswith("report/") for file in hub.repositories["somebody/demo"].history()[0].files)

        card = hub.repositories["somebody/demo"].history()[0].files["README.md"].content.decode()
        snippet = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert snippet is not None
        environment = os.environ | {"HF_HOME": str(tmp_path / "another"), "HF_HUB_DISABLE_XET": "1"}
        used = subprocess.run([sys.executable, "-c", snippet.group(1)], env=environment, capture_output=True, text=True)
        assert used.returncode == 0, used.stderr
        assert "Human: How can I improve my communication skills?" in used.stdout
        assert list((tmp_path / "another" / "hub").glob("models--somebody--demo/snapshots/*/model.safetensors"))

        files = b"".join(path.read_bytes() for path in finished.rglob("*") if path.is_file())
        assert finished_run.TOKEN.encode() not in files + printed.encode()


def test_several_seeds_of_ppo_share_all_that_comes_before_and_report_their_spread(finished: Path) -> None:
    before = weights(finished)
    done = pipeline(finished, "ppo.seeds=[0,1]")
    assert done.returncode == 0, done.stderr
    assert all(reused(finished).values())  # of seed 0, the run's own
    found = summary(finished)["seeds"]
    assert [one["seed"] for one in found["by_seed"]] == [0, 1]
    rewards = [one["reward"]["mean"] for one in found["by_seed"]]
    assert rewards[0] == summary(finished)["evaluation"]["models"]["ppo"]["reward"]["mean"]
    assert rewards[0] != rewards[1]
    assert found["over_seeds"]["reward"]["mean"] == pytest.approx(sum(rewards) / 2)
    assert "0 of 2 seeds collapsed." in done.stdout
    other = json.loads((finished / "latest" / "ppo-seed1" / "manifest.json").read_text())
    assert other["seed"] == 1
    assert other["weights_sha256"]["model.safetensors"] != before["ppo"]
    assert pipeline(finished).returncode == 0
    assert summary(finished)["seeds"] is None


def test_a_reward_model_of_shuffled_labels_stops_the_run_also_after_a_run_with_force(tmp_path: Path) -> None:
    coin = random.Random(0)
    rows = generator.pairs(700, seed=1)
    for row in rows:
        if coin.random() < 0.5:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    for name, some in (("train", texts[:400]), ("test", texts[400:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    larger = ("data.train_pairs=null", "data.test_pairs=null", "reward.args.save_steps=1000", "sft.args.max_steps=4")
    overrides = (f"data.path={tmp_path}", *larger, "data.utility=null")
    done = pipeline(tmp_path / "out", *overrides, "force=false")
    assert done.returncode == 2, done.stdout
    fault = (
        r"error: reward: the reward model is right on .* of held-out pairs, (where chance is 50 %|and taking the "
        r"(longer|shorter) answer is right on .*); give it more pairs .* and check the labels; "
    )
    assert re.fullmatch(rf"{fault}or go on with force=true\n", done.stderr)
    assert not list(tmp_path.glob("out/stages/ppo-*/model"))

    forced = pipeline(tmp_path / "out", *overrides, "force=true", verb="ppo")
    assert forced.returncode == 0, forced.stderr
    assert "forced: reward: the reward model is right on" in forced.stdout
    rerun = pipeline(tmp_path / "out", *overrides, "force=false", verb="ppo")
    assert rerun.returncode == 2
    assert re.fullmatch(rf"{fault}.* was trained with force=true; to reuse it, set force=true again\n", rerun.stderr)


def test_an_sft_model_that_never_ends_an_answer_is_stopped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # random weights give each of 50,257 tokens about the same probability, so EOS nearly none
    shape = "model.random={vocab_size: 50257, n_positions: 512, n_embd: 32, n_layer: 1, n_head: 1}"
    little = ("sft.args.max_steps=1", "sft.args.learning_rate=1e-9", "reward.args.max_steps=1")
    enough = ("data.disjoint=false", "ppo.args.gradient_accumulation_steps=8", "ppo.args.total_episodes=64")
    own_reward = "ppo.reward.function=math_of_length:score"
    (tmp_path / "math_of_length.py").write_text("def score(prompts, answers):\n    return [len(a) for a in answers]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = pipeline(tmp_path, "model=gpt2_random", shape, *little, *enough, own_reward, "force=false")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: sft: 0 of 64 answers of the SFT model ended with EOS")
    assert done.stderr.count("\n") == 1


def snippet(model_dir: Path) -> str:
    """The usage snippet of a model's card, for a model that lies there."""
    card = (model_dir / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return code.replace(f"outputs/latest/{model_dir.name}", str(model_dir))


def run_code(code: str) -> str:
    done = commands.call(exec, code, {"__name__": "__main__"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", ["model", "sft_model"])
def test_the_usage_snippet_of_the_card_runs_and_writes_an_answer(finished: Path, folder: str) -> None:
    output = run_code(snippet(finished / "latest" / folder))
    assert output.count("Assistant:") >= 1
    assert len(output.strip()) > len("Human: How can I improve my communication skills?\n\nAssistant:")


def test_the_usage_snippet_of_the_reward_models_card_gives_the_scores_of_training(finished: Path) -> None:
    from gpt2_rlhf.models import loading, tokens
    from gpt2_rlhf.models.scoring import score

    model_dir = finished / "latest" / "reward_model"
    code = snippet(model_dir)
    prompt = "\n\nHuman: How can I improve my communication skills?\n\nAssistant:"
    answers = (" Listen first, then ask a question.", " No.")
    assert repr(answers[0]).strip("'") in code
    tokenizer = tokens.load_tokenizer(str(model_dir), None)
    rows = tokens.encode_reward(tokenizer, [{"prompt": prompt, "chosen": a, "rejected": a} for a in answers])
    pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    model = loading.load_reward(str(finished / "latest" / "reward" / "model"), pad_token_id)
    expected = score(model, pad_token_id, [row["chosen_ids"] for row in rows], batch_size=2)
    printed = [float(line.split()[0]) for line in run_code(code).splitlines()]
    assert printed == pytest.approx(expected.tolist(), abs=1e-3)


def test_make_card_writes_the_same_cards_again_and_says_where(finished: Path) -> None:
    paths = [finished / "latest" / folder / "README.md" for folder in ("model", "sft_model", "reward_model")]

    def texts() -> list[str]:
        return [path.read_text(encoding="utf-8") for path in paths]

    before = texts()
    command = ["make", "--no-print-directory", "card", f"output_dir={finished}", *SMALL]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(path.resolve()) for path in paths]
    assert texts() == before
    assert not any(str(finished.parent) in text for text in before)


def test_the_product_keeps_the_token_contract(finished: Path) -> None:
    from transformers import GPT2LMHeadModel, GPT2Tokenizer

    model_dir = finished / "latest" / "model"
    tokenizer = GPT2Tokenizer.from_pretrained(model_dir)
    model = GPT2LMHeadModel.from_pretrained(model_dir)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.state_dict()["transformer.wte.weight"].shape[0] == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.suppress_tokens is None


def test_a_run_killed_after_checkpoints_of_two_stages_resumes_to_the_same_weights(
    finished: Path, tmp_path: Path
) -> None:
    for stage in ("sft", "reward"):
        run = start(tmp_path)
        wait_for_checkpoint(tmp_path, stage, run)
        run.kill()
        assert stage == "sft" or " goes on from step " in run.wait().stdout
    again = pipeline(tmp_path, verb="reward")
    assert again.returncode == 0, again.stderr
    assert " goes on from step " in again.stdout
    assert weights(tmp_path, ("sft", "reward")) == weights(finished, ("sft", "reward"))
    built = [p.parent.name.partition("-")[0] for p in tmp_path.glob("stages/*/manifest.json")]
    assert sorted(built) == ["data", "reward", "sft"]  # what the command needs, and no more


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_leaves_a_checkpoint_and_one_line(
    finished: Path, tmp_path: Path, signum: int, code: int
) -> None:
    copy_stages(finished, tmp_path, "data", "sft")
    run = start(tmp_path)
    wait_for_checkpoint(tmp_path, "reward", run)
    os.killpg(run.pid, signum)
    done = run.wait(timeout_s=60)
    output = done.stdout
    assert done.returncode == code, output
    assert "Traceback" not in output
    assert "reward stopped by" in output
    assert "run the same command again" in output
    assert list(tmp_path.glob("stages/reward-*/checkpoints/checkpoint-*"))


def test_a_second_run_in_the_same_directory_is_refused_while_the_first_works(tmp_path: Path) -> None:
    run = start(tmp_path)
    wait_for_checkpoint(tmp_path, "sft", run)
    second = pipeline(tmp_path)
    assert second.returncode == 2
    assert "another run is building it" in second.stderr
    status = pipeline(tmp_path, verb="status")
    assert "running" in status.stdout
    run.kill()


def test_lora_in_every_stage_hands_on_merged_models(tmp_path: Path) -> None:
    done = pipeline(tmp_path, *(f"{stage}.peft.r=4" for stage in ("sft", "reward", "ppo")), verb="ppo")
    assert done.returncode == 0, done.stderr
    for stage in TRAINED:
        files = {p.name for p in (tmp_path / "latest" / stage / "model").iterdir()}
        assert "model.safetensors" in files
        assert not {name for name in files if "adapter" in name}


def test_a_defect_inside_a_stage_is_one_line_with_the_details_in_a_file(finished: Path) -> None:
    done = pipeline(finished, "data.utility=json:loads")  # it takes one argument, not a prompt and an answer
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "evaluate: TypeError: " in done.stderr
    log = re.search(r"details in (.*)\)", done.stderr)
    assert log is not None
    assert "Traceback" in (REPOSITORY / log.group(1)).read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.args.num_mini_batches=3", "ppo.args.num_mini_batches: 3 does not divide"),
        ("sft.args.report_to=wandb", "sft.args.report_to: ['wandb']"),
        ("sft.args.report_to=nonsense", "sft.args.report_to: ['nonsense']: nonsense is not supported"),
        ("sft.args.accelerator_config=foo", "sft.args: "),
    ],
)
def test_what_trl_would_refuse_later_is_refused_before_the_first_stage_trains(
    tmp_path: Path, override: str, words: str
) -> None:
    done = pipeline(tmp_path, override)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("stages/sft-*/model"))
