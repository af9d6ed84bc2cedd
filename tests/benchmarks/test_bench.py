"""The benchmark: figures worked out by hand, the trainers of both sides in this process, and once in processes."""

import contextlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from benchmarks import bench, bench_worker
from benchmarks.bench import COMPARISONS, Comparison, Result, Side
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import model_files, tokens
from gpt2_rlhf.ppo_trainer import rollouts
from helpers import families

SHAPE = {"vocab_size": 1600, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
PPO_ARGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "local_rollout_forward_batch_size": 2,
    "response_length": 4,
}
TINY = {
    "ppo": Comparison("ppo", SHAPE, (3, 9), False, PPO_ARGS),
    "sft": Comparison("sft", SHAPE, (3, 9), False, {"per_device_train_batch_size": 4}),
    "reward": Comparison("reward", SHAPE, (3, 9), False, {"per_device_train_batch_size": 4}),
}
RESULT = Result(
    name="sft-small",
    about="rows",
    stock=Side(wall_s=[4.0, 6.0, 9.0], cpu_s=[8.0, 8.0, 8.0], tokens=[95, 95, 190], peak_mib=300.0, losses=[0.5, 0.25]),
    ours=Side(wall_s=[2.0, 1.5, 3.0], cpu_s=[2.0, 2.0, 5.0], tokens=[95, 95, 190], peak_mib=200.0, losses=[0.5, 0.125]),
    flops_per_token=1e12,
)
WHERE: dict[str, str | int] = {
    "cpu": "A chip",
    "cores": 2,
    "threads": "1",
    "gpu": "no GPU",
    "dtype": "float32",
    "versions": "torch 2",
    "date": "2026-11-24",
}


@pytest.fixture(autouse=True)
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_worker, "_ANSWER_TOKENS", (2, 20))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def served(kind: str, side: str, words: list[str]) -> list[dict[str, Any]]:
    """The answers of the worker to these requests."""
    answers = io.StringIO()
    task = {"comparison": vars(TINY[kind]), "side": side, "updates": len(words) - 2, "hh": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stock TRL
        bench_worker.serve(task, io.StringIO("\n".join(words)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_ratios_are_stock_over_ours() -> None:
    assert RESULT.wall_ratio == 6.0 / 2.0
    assert RESULT.cpu_ratio == 8.0 / 2.0
    assert RESULT.pair_ratios == [4 / 2, 6 / 1.5, 9 / 3]
    assert RESULT.loss_difference == 0.125


def test_ppo_has_no_losses_to_compare() -> None:
    silent = [replace(side, losses=[]) for side in (RESULT.stock, RESULT.ours)]
    assert Result("ppo-small", "prompts", *silent, flops_per_token=1.0).loss_difference is None


def test_the_page_has_a_row_for_each_comparison_and_states_that_there_was_no_gpu() -> None:
    page = bench.markdown([RESULT], WHERE, "python -m benchmarks.bench")
    assert "| sft-small | 6 | 2 | 3.00x | 2.00 to 4.00 | 4.00x | 300 | 200 | 0.1 | 20 | 58 | - | - |" in page
    assert "Measured without a GPU, so MFU is not known." in page
    assert page.endswith(bench.NO_GPU)
    assert bench.NO_GPU in (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "A chip, 2 cores (OMP_NUM_THREADS 1), no GPU, float32;" in page
    assert "`python -m benchmarks.bench`" in page


def test_the_page_names_the_gpu_and_its_precision_and_gives_utilisation_where_its_peak_is_known() -> None:
    gpu = "NVIDIA A100-SXM4-40GB"
    page = bench.markdown([RESULT], {**WHERE, "gpu": gpu, "dtype": "bfloat16"}, "")
    assert f"{gpu}, bfloat16;" in page
    assert "All arguments set bfloat16" in page
    assert "without a GPU" not in page
    stock, ours = (380 / seconds * 1e12 / 312e12 for seconds in (19, 6.5))
    assert RESULT.utilisation(RESULT.ours, gpu) == pytest.approx(ours)
    assert f"| {100 * stock:.1f} % | {100 * ours:.1f} % |" in page


@pytest.mark.parametrize("has_bf16", [True, False])
def test_both_sides_are_told_to_train_in_bfloat16_where_the_gpu_has_it(
    has_bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert bench.device() == ("NVIDIA L4", "bfloat16" if has_bf16 else "float32")
    for comparison in TINY.values():
        assert bench_worker._arguments(comparison, 1, str(tmp_path))["bf16"] is has_bf16


def test_gpt2_is_trained_without_being_named_only_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    known = set(COMPARISONS) - {"sft-model", "reward-model", "ppo-model"}  # without --model
    started: list[str] = []
    monkeypatch.setattr(bench, "compare", lambda name, *_: started.append(name) or RESULT)
    for gpu, names in (("no GPU", known - {"sft-gpt2", "reward-gpt2"}), ("NVIDIA L4", known)):
        monkeypatch.setattr(bench, "machine", lambda gpu=gpu: {**WHERE, "gpu": gpu})
        bench.main([])
        assert set(started) == names
        started.clear()


def test_an_unknown_gpu_has_no_utilisation() -> None:
    where = {**WHERE, "gpu": "NVIDIA A100-SXM4-40GB MIG 1g.5gb"}
    assert bench.record([RESULT], where, "")["comparisons"][0]["mfu"] == {"stock": None, "ours": None}
    page = bench.markdown([RESULT], where, "")
    assert "| 20 | 58 | - | - |" in page
    assert "bfloat16, which" not in page


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_both_sides_have_equal_losses(kind: str) -> None:
    stock, ours = (served(kind, side, ["update"] * 3 + ["stop"])[-1]["losses"] for side in bench.SIDES)
    assert len(stock) == 2
    assert stock[0] != stock[1]
    assert ours == pytest.approx(stock, abs=1e-5)


@pytest.mark.parametrize("side", bench.SIDES)
def test_the_worker_answers_an_update_with_its_seconds_and_the_end_with_the_peak_memory(side: str) -> None:
    about, *updates, end = served("ppo", side, ["update", "update", "stop"])
    assert "prompts of 3 to 9 tokens" in about["about"]
    assert [set(update) for update in updates] == [{"wall_s", "cpu_s", "tokens"}] * 2
    assert all(update["wall_s"] > 0 for update in updates)
    rows = PPO_ARGS["per_device_train_batch_size"]
    assert all(rows * (3 + 1) <= update["tokens"] <= rows * (9 + 4) for update in updates[1:])
    assert end["peak_mib"] > 0
    assert (end["flops_per_token"] is None) == (side == "stock")


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_both_sides_count_the_same_tokens_and_ours_the_flops_of_a_token(kind: str) -> None:
    (_, *stock, _), (_, *ours, end) = (served(kind, side, ["update"] * 3 + ["stop"]) for side in bench.SIDES)
    assert [update["tokens"] for update in ours] == [update["tokens"] for update in stock]
    width, vocabulary = SHAPE["n_embd"], SHAPE["vocab_size"]
    layers = 6 * 12 * width**2  # forward and backward pass through the weights of one layer
    # ours computes the prompt of a pair once on a CPU, and the feed-forward part (8 of 12) at the last token only
    assert end["flops_per_token"] > (0.9 if kind == "sft" else 0.9 * 4 / 12 * 0.8) * layers
    # TRL computes the logits of SFT in chunks, and again in the backward pass
    assert end["flops_per_token"] < 1.5 * layers + (12 * width * vocabulary if kind == "sft" else 0)


def test_both_sides_of_ppo_get_the_same_prompts_in_the_same_order(tmp_path: Path) -> None:
    tokenizer = tokens.load_tokenizer(str(model_files.EMBEDDED_DIR), None)
    rows = bench_worker._rows(TINY["ppo"], tokenizer, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock, ours = (
            bench_worker.build(
                TINY["ppo"], side, rows, tokenizer, 3, str(tmp_path), bench_worker.Turns(*[io.StringIO()] * 2)
            )
            for side in bench.SIDES
        )
    padding = tokens.pad_id(tokens.padding_copy(tokenizer, "left"))
    batches: Any = stock.dataloader  # type: ignore[attr-defined]
    texts = [[[token for token in row if token != padding] for row in batch["input_ids"].tolist()] for batch in batches]
    trainer: Any = ours
    size, seed = trainer.args.batch_size, trainer.args.seed
    assert texts == [rollouts.prompt_batch(trainer.prompts, update, size, seed) for update in range(3)]


def test_both_sides_start_from_the_same_weights_and_only_ours_is_changed(tmp_path: Path) -> None:
    tokenizer = tokens.load_tokenizer(str(model_files.EMBEDDED_DIR), None)
    rows = bench_worker._rows(TINY["reward"], tokenizer, None)
    turns = bench_worker.Turns(io.StringIO(), io.StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock, ours = (
            bench_worker.build(TINY["reward"], side, rows, tokenizer, 3, str(tmp_path), turns).model
            for side in bench.SIDES
        )
    assert stock is not None
    assert ours is not None
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert any(isinstance(module, NewGELUActivation) for module in stock.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in ours.modules())
    assert [len(model.base_model._forward_pre_hooks) for model in (stock, ours)] == [0, 1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["ppo-large"], "there is no comparison 'ppo-large'; expected some of ppo-small"),
        (["--updates", "0"], "--updates: 0; expected 1 or more"),
        (["--hh", "/nowhere"], "--hh: /nowhere is not a folder"),
        (["--model", "/nowhere"], "--model: /nowhere has no config.json"),
        (["sft-model"], "sft-model needs a model and rows; give --model FOLDER and --hh FOLDER"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_starts(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bench.main(argv)


def test_the_worker_names_a_folder_without_rows(tmp_path: Path) -> None:
    answers = io.StringIO()
    task = {"comparison": vars(COMPARISONS["sft-medium"]), "side": "ours", "updates": 1, "hh": str(tmp_path)}
    bench_worker.serve(task, io.StringIO(), answers)
    assert str(tmp_path) in json.loads(answers.getvalue())["error"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a page and its JSON: SFT of a model of another family, on rows of a folder."""
    folder = tmp_path_factory.mktemp("bench")
    rows, model = folder / "rows", folder / "tiny-llama"
    rows.mkdir()
    for name, count in (("train", 30), ("test", 4)):
        pairs = [
            {
                side: f"\n\nHuman: {'why ' * (n % 7)}{n}?\n\nAssistant: {end}"
                for side, end in (("chosen", "Yes."), ("rejected", "No"))
            }
            for n in range(count)
        ]
        (rows / f"{name}.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    tokens.load_tokenizer(str(model_files.EMBEDDED_DIR), None).save_pretrained(model)
    sizes = {**families.FAMILIES["llama"], "vocab_size": 1536, "max_position_embeddings": 1024}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes)).save_pretrained(model)
    page = folder / "docs" / "page.md"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        bench.main(["sft-model", "--updates", "2", "--model", str(model), f"--hh={rows}", "--write", str(page)])
    assert page.read_text() in printed.getvalue()
    return page


def test_the_page_and_its_json_are_written(written: Path) -> None:
    (comparison,) = json.loads(written.with_suffix(".json").read_text())["comparisons"]
    for side in bench.SIDES:
        assert len(comparison[side]["wall_s"]) == len(comparison[side]["cpu_s"]) == 2
        assert comparison[side]["peak_mib"] > 100
    assert comparison["loss_difference"] < 1e-5
    assert min(comparison["pair_ratios"]) <= comparison["wall_ratio"] <= max(comparison["pair_ratios"])


def test_the_page_names_its_command_and_no_folder_of_the_machine(written: Path) -> None:
    page = written.read_text()
    command = "python -m benchmarks.bench sft-model --updates 2 --model tiny-llama --hh=FOLDER --write page.md"
    assert f"`{command}`" in page
    assert str(written.parents[1]) not in page


def test_the_page_has_the_row_of_a_model_of_another_family_on_rows_of_a_folder(written: Path) -> None:
    row = next(line for line in written.read_text().splitlines() if line.startswith("| sft-model"))
    assert float(row.split("|")[9]) < 1e-5


def test_a_side_that_ends_early_gives_an_error_of_one_line() -> None:
    broken = replace(TINY["sft"], args={"no_such_argument": 1})
    with pytest.raises(UserError, match="the process of stock in tiny ended with code 1"):
        bench.compare("tiny", broken, 1, None)
