"""Estimates against what is measured here: activations by torch's hooks for saved tensors, peaks by the system."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, GPT2Config

from gpt2_rlhf import sft
from gpt2_rlhf.config import compose
from gpt2_rlhf.config.settings import with_value
from gpt2_rlhf.embedded import generator
from gpt2_rlhf.models import memory, packing, shape, tokens
from gpt2_rlhf.models.memory import Lengths
from gpt2_rlhf.rows import lengths, tables
from gpt2_rlhf.rows.transcripts import pair
from gpt2_rlhf.store.stage import Stage
from helpers.overrides import changed

SHAPE = {"vocab_size": 100, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
TINY = with_value(compose.load([]).settings, "model.random", SHAPE)
ROWS = Lengths(rows=80, prompt=20.0, answer=10.0, longest=50, spread=0.0)
WITHOUT_PROMPTS = Lengths(rows=80, prompt=0.0, answer=30.0, longest=50, spread=0.0)


def peak(name: str, *overrides: str, processes: int = 1, on_gpu: bool = False, rows: Lengths = ROWS) -> memory.Memory:
    measuring = ("evaluate.batch_size=1", "ppo.args.local_rollout_forward_batch_size=1")  # less than learning needs
    chosen = changed(TINY, *measuring, *overrides)
    return memory.peak(name, chosen, shape.of(chosen.model), tables_of(rows), processes, on_gpu)


def tables_of(rows: Lengths) -> dict[str, Lengths]:
    return dict.fromkeys(("sft", "reward", "judge", "ppo", "test"), rows)


def saved_bytes(config: object, rows: int, columns: int) -> int:
    """What a training pass over the model's layers keeps for its backward pass, without the weights."""
    model = AutoModel.from_config(config).train()
    packing.use_fused_activations(model)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = model(input_ids=torch.ones(rows, columns, dtype=torch.long), use_cache=False)
    assert kept.last_hidden_state.requires_grad
    return sum(found.values())


def test_activations_of_gpt2_with_dropout_are_what_torch_keeps() -> None:
    found = peak("reward", "reward.args.per_device_train_batch_size=4", rows=WITHOUT_PROMPTS)
    measured = saved_bytes(GPT2Config.from_dict(SHAPE), rows=8, columns=30)
    assert found.activations == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize(("family", "columns"), [("llama", 30), ("stablelm", 50)], ids=["packed", "padded"])
def test_activations_of_a_gated_model_are_what_torch_keeps(family: str, columns: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"vocab_size": 1536, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **special, num_key_value_heads=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    batches = ("reward.args.per_device_train_batch_size=4", "evaluate.batch_size=1")
    chosen = changed(TINY, "model.random=null", f"model.name={tmp_path}", *batches)
    found = memory.peak("reward", chosen, shape.of(chosen.model), tables_of(WITHOUT_PROMPTS), 1, on_gpu=False)
    assert found.activations == pytest.approx(saved_bytes(config, rows=8, columns=columns), rel=0.15)


def test_the_prompt_of_a_pair_counts_once_on_a_cpu() -> None:
    pairs, batch = 4, "reward.args.per_device_train_batch_size=4"
    of_prompts, of_answers = (pairs * tokens for tokens in (ROWS.prompt, 2 * ROWS.answer))
    once = peak("reward", batch).activations
    without = peak("reward", batch, rows=WITHOUT_PROMPTS).activations
    assert once == pytest.approx(without * (of_prompts + of_answers) / (2 * pairs * WITHOUT_PROMPTS.answer))


def test_weights_gradients_and_optimizer_state_of_sft_and_ppo() -> None:
    weights_bytes = 4 * shape.of(TINY.model).weights
    found = peak("sft")
    assert (found.weights, found.gradients, found.optimizer) == (weights_bytes, weights_bytes, 2 * weights_bytes)
    found = peak("ppo", "data.shares.judge=0")  # policy and critic learn; reference and reward model do not
    score = 4 * SHAPE["n_embd"]
    assert found.weights == 4 * weights_bytes + 2 * score
    assert (found.gradients, found.optimizer) == (2 * weights_bytes + score, 4 * weights_bytes + 2 * score)
    assert peak("ppo").weights == 5 * weights_bytes + 3 * score  # and a judge
    assert peak("sft", "sft.args.optim=sgd").optimizer == 0
    assert peak("sft", processes=2).gradients == 2 * weights_bytes


def test_rloo_keeps_reference_and_reward_model_and_dpo_the_reference_alone() -> None:
    weights_bytes, score = 4 * shape.of(TINY.model).weights, 4 * SHAPE["n_embd"]
    rloo = peak("rloo", "method=rloo", "rloo.args.steps_per_generation=1")  # samples what it learns
    dpo = peak("dpo", "method=dpo")
    assert (rloo.weights, dpo.weights) == (3 * weights_bytes + score, 2 * weights_bytes)
    assert rloo.gradients == dpo.gradients == weights_bytes
    with_adapter = peak("dpo", "method=dpo", "dpo.peft.r=2")  # without it the policy is the reference
    assert with_adapter.weights == weights_bytes + with_adapter.gradients


def test_shards_divide_what_is_trained_and_ppo_samples_with_a_whole_copy() -> None:
    weights_bytes = 4 * shape.of(TINY.model).weights
    found = peak("sft", "launch.sharded=true", processes=4)
    assert (found.weights, found.gradients, found.optimizer) == tuple(weights_bytes * n / 4 for n in (1, 1, 2))
    many = ("evaluate.batch_size=64", "ppo.args.response_length=40")
    sampling = peak("ppo", "launch.sharded=true", "ppo.args.per_device_train_batch_size=1", *many, processes=4)
    # a share of policy and critic, a whole copy of both, reference, reward model and judge
    assert sampling.weights == pytest.approx(weights_bytes * (2 / 4 + 2 + 3), rel=0.01)
    assert sampling.gradients == 0


def test_an_adapter_alone_has_gradients_and_accumulated_batches_cost_nothing() -> None:
    whole, adapter = peak("sft"), peak("sft", "sft.peft.r=2")
    assert adapter.gradients < whole.gradients / 20
    assert adapter.weights == whole.weights + adapter.gradients
    assert peak("sft", "sft.args.gradient_accumulation_steps=8") == whole


def test_half_precision_on_a_gpu_keeps_fewer_bytes_and_a_copy_of_the_weights() -> None:
    batch = "sft.args.per_device_train_batch_size=16"
    full, half = (peak("sft", batch, f"sft.args.bf16={on}", on_gpu=True) for on in ("false", "true"))
    assert half.activations == pytest.approx(0.6 * full.activations + full.weights / 2)
    assert peak("sft", batch, "sft.args.bf16=true").activations == peak("sft", batch).activations  # on a CPU


def test_on_a_gpu_rollouts_keep_copies_in_half_precision_of_the_four_models_that_read_them() -> None:
    many = ("data.shares.judge=0", "evaluate.batch_size=64", "ppo.args.response_length=40")
    one = "ppo.args.per_device_train_batch_size=1"  # so that learning needs less
    full, half = (peak("ppo", *many, one, f"ppo.args.bf16={on}", on_gpu=True) for on in ("false", "true"))
    assert full.gradients == half.gradients == 0
    found = shape.of(TINY.model)
    copies_bytes = 2 * (2 * found.weights + 2 * found.reward_weights)  # policy, reference, critic, reward model
    assert half.activations - full.activations == copies_bytes


def test_on_a_gpu_half_precision_is_the_default() -> None:
    for name in ("sft", "reward", "ppo"):
        assert peak(name, on_gpu=True) == peak(name, f"{name}.args.bf16=true", on_gpu=True)
        assert peak(name, on_gpu=True) != peak(name, f"{name}.args.bf16=false", on_gpu=True)


def test_ppo_learns_with_the_logits_of_a_bounded_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ("ppo.args.per_device_train_batch_size=8", "ppo.args.response_length=10")
    whole = peak("ppo", *batch)
    monkeypatch.setattr(memory, "LOGITS_AT_ONCE", 2 * 10 * SHAPE["vocab_size"])
    bounded = peak("ppo", *batch)
    assert (whole.logits, bounded.logits) == tuple(4 * 2 * rows * 10 * SHAPE["vocab_size"] for rows in (8, 2))
    assert bounded.activations == pytest.approx(whole.activations / 4)


def test_checkpointed_activations_are_one_layer_and_the_inputs_of_all() -> None:
    """Of 18 x width numbers per token and layer (16 and two dropout masks), for 3 layers; attention weights beside."""
    overrides = ("reward.args.per_device_train_batch_size=16",)
    tokens, width = 32 * 30, SHAPE["n_embd"]
    attention = 4 * 3 * SHAPE["n_head"] * 3 * tokens * 30
    rows = WITHOUT_PROMPTS
    assert peak("reward", *overrides, rows=rows).activations == 4 * 3 * 18 * width * tokens + attention
    checkpointed = peak("reward", *overrides, "reward.args.activation_checkpointing=true", rows=rows)
    assert checkpointed.activations == 4 * (3 + 18) * width * tokens + attention


@pytest.mark.parametrize(("name", "pairs"), [("sft", 30), ("reward", 15)])
def test_measuring_takes_no_more_texts_at_once_than_the_held_out_pairs_have(name: str, pairs: int) -> None:
    """An answer of each pair for the loss of SFT, both for the accuracy of a reward model."""
    of_a_token = 6 * SHAPE["n_embd"] + 2 * 4 * SHAPE["n_embd"]
    found = peak(
        name, f"{name}.args.per_device_train_batch_size=1", "evaluate.batch_size=64", f"evaluate.pairs={pairs}"
    )
    assert (found.gradients, found.activations) == (0, 4 * of_a_token * 30 * ROWS.longest)


def measured_mib(train: Callable[[], object]) -> float:
    """The peak of a process that was forked from this one, as the pipeline forks its stages."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_train, args=(train, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    return results.get()


def _train(train: Callable[[], object], results: SimpleQueue) -> None:
    torch.set_num_threads(1)
    train()
    results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.slow
def test_the_peak_of_sft_of_40_million_weights_is_within_a_quarter_of_the_estimate(tmp_path: Path) -> None:
    """About 700 MB of weights, gradients and moments, beside the 490 MiB of the process."""
    sizes = "{vocab_size: 30000, n_positions: 512, n_embd: 640, n_layer: 4, n_head: 10}"
    overrides = ("model=gpt2_random", f"model.random={sizes}", "sft.args.max_steps=2", "sft.args.save_strategy='no'")
    chosen = compose.load([*overrides, "sft.args.per_device_train_batch_size=4"]).settings
    data = Stage("data", tmp_path / "data", {}, {})
    data.directory.mkdir()
    rows = [pair(values, "embedded", str(number)) for number, values in enumerate(generator.pairs(8, 0))]
    tables.write(data.directory, {"sft": rows, "test": rows[:2]})
    stage = Stage("sft", tmp_path / "sft", {"seed": 0, "processes": 1}, {"data": data})
    stage.directory.mkdir()
    measured = measured_mib(lambda: sft.run(chosen, stage))
    found = lengths.of_tables(data.directory, tokens.load_base_tokenizer(chosen.model, None))
    estimate = memory.peak("sft", chosen, shape.of(chosen.model), found, 1, on_gpu=False)
    assert estimate.total / 2**20 == pytest.approx(measured, rel=0.25)
    assert estimate.total > 1.2 * (490 * 2**20 + estimate.weights)  # what the model needs decides it
