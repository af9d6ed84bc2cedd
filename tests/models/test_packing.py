import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from transformers import GPT2Model, PreTrainedModel, TrainerCallback, set_seed
from transformers.activations import NewGELUActivation
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gpt2_rlhf.models import attention, packing, tokens
from helpers import families, ppo_tiny
from helpers.tiny import tiny_policy, tiny_reward, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LENGTHS = [9, 4, 1]
TOKENS = sum(LENGTHS)


def padded(side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of three rows of 9, 4 and 1 tokens; the padding is a token that also occurs in the rows."""
    generator = torch.Generator().manual_seed(3)
    ids, mask = torch.full((3, 9), 7), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        part = slice(0, length) if side == "right" else slice(9 - length, 9)
        ids[row, part] = torch.randint(0, 200, (length,), generator=generator)
        mask[row, part] = 1
    return ids, mask


def policy() -> PreTrainedModel:
    return without_dropout(tiny_policy(TOKENIZER))


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def packed(model: PreTrainedModel) -> PreTrainedModel:
    packing.use_fused_activations(model)
    packing.without_padding(model, 9)
    return model


def hidden(model: nn.Module, **inputs: Any) -> Tensor:
    return model(**{"use_cache": False, **inputs}).last_hidden_state


def embedded_tokens(model: PreTrainedModel) -> list[int]:
    """Return a list that gets the number of tokens of each later pass through the model."""
    passes: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].numel()))
    return passes


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("positions_given", [True, False])
def test_states_equal_those_of_the_padded_batch_and_are_zero_at_padding(side: str, positions_given: bool) -> None:
    ids, mask = padded(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model = policy()
    expected = hidden(model.base_model, input_ids=ids, attention_mask=mask, position_ids=positions)
    passes = embedded_tokens(packed(model))
    given = {"position_ids": positions} if positions_given else {}
    ours = hidden(model.base_model, input_ids=ids, attention_mask=mask, **given)
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)
    assert ours[~mask.bool()].abs().sum() == 0
    assert passes == [TOKENS]


def test_positions_of_one_row_apply_to_all_rows() -> None:
    ids, mask = padded("right")
    positions = torch.arange(20, 29)[None]
    expected = hidden(policy().base_model, input_ids=ids, attention_mask=mask, position_ids=positions)
    ours = hidden(packed(policy()).base_model, input_ids=ids, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_is_zero() -> None:
    ids, mask = padded("right")
    mask[1] = 0
    ours = hidden(packed(policy()).base_model, input_ids=ids, attention_mask=mask)
    expected = hidden(policy().base_model, input_ids=ids[:1])
    torch.testing.assert_close(ours[:1], expected, rtol=0, atol=1e-5)
    assert ours[1].abs().sum() == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"use_cache": True},
        {"use_cache": None},
        {"attention_mask": None},
        {"attention_mask": torch.ones(3, 9)},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"token_type_ids": torch.zeros(3, 9, dtype=torch.long)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_calls_are_unchanged(changed: dict[str, Any]) -> None:
    ids, mask = padded("right")
    model = policy()
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, **changed}
    expected = model.base_model(**inputs)
    packing.without_padding(model, 9)
    ours = model.base_model(**inputs)
    assert ours.keys() == expected.keys()
    assert torch.equal(ours.last_hidden_state, expected.last_hidden_state)


def test_generation_is_unchanged() -> None:
    ids, mask = padded("left")
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 7}
    model = policy()
    expected = model.generate(ids, attention_mask=mask, **settings)  # type: ignore[operator]
    packing.without_padding(model, 9)
    assert torch.equal(model.generate(ids, attention_mask=mask, **settings), expected)  # type: ignore[operator]


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    def gradients(model: PreTrainedModel, checkpointed: bool) -> list[Tensor | None]:
        ids, mask = padded("right")
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        hidden(model.base_model, input_ids=ids, attention_mask=mask)[mask.bool()].square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for ours, expected in zip(gradients(packed(policy()), True), gradients(policy(), False), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_copy_computes_with_its_own_weights() -> None:
    ids, mask = padded("right")
    model = packed(policy())
    copied = copy.deepcopy(model)
    copied.get_parameter("transformer.ln_f.bias").data += 1
    difference = hidden(copied.base_model, input_ids=ids, attention_mask=mask) - hidden(
        model.base_model, input_ids=ids, attention_mask=mask
    )
    torch.testing.assert_close(difference[mask.bool()], torch.ones(TOKENS, 32), rtol=0, atol=1e-5)


def test_saved_files_are_the_same_as_without_packing(tmp_path: Path) -> None:
    plain, ours = policy(), packed(policy())
    ids, mask = padded("right")
    hidden(ours.base_model, input_ids=ids, attention_mask=mask)
    for model, folder in ((plain, "plain"), (ours, "ours")):
        model.save_pretrained(tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "ours").iterdir())
    for name in files:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    assert list(plain.state_dict()) == list(ours.state_dict())


@pytest.mark.parametrize("dropped", ["attn_dropout", "resid_dropout"])
def test_dropout_still_applies(dropped: str) -> None:
    ids, mask = padded("right")
    model = packed(policy()).train()
    for block in model.base_model.h:  # type: ignore[union-attr]
        getattr(block.attn, dropped).p = 0.5
    first, second = (hidden(model.base_model, input_ids=ids, attention_mask=mask) for _ in range(2))
    assert not torch.equal(first, second)
    assert first[~mask.bool()].abs().sum() == 0


SDPA_FAMILIES = ("llama", "qwen2", "mistral", "gpt_neox", "opt", "qwen3", "mixtral", "qwen2_moe", "phi")
OTHER_FAMILIES = ("gemma2", "stablelm", "gptj", "gpt_neo", "falcon", "bloom", "mpt", "gpt_oss")


def token_logits(model: PreTrainedModel, side: str) -> Tensor:
    """Logits at the tokens of the padded batch, by a call as TRL's trainers make it."""
    ids, mask = (part % ppo_tiny.VOCABULARY for part in padded(side))
    return model(input_ids=ids, attention_mask=mask, use_cache=False, num_items_in_batch=3).logits[mask.bool()]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [*SDPA_FAMILIES, *OTHER_FAMILIES])
def test_logits_and_gradients_of_every_family_equal_those_of_each_row_alone(family: str, side: str) -> None:
    """By hooks, or padded where packing would give other numbers; padding on the left is for those that pack."""
    if side == "left" and family in OTHER_FAMILIES:
        side = "right"
    model = families.policy(family).eval()
    ids, mask = (part % ppo_tiny.VOCABULARY for part in padded(side))
    alone = [
        model(input_ids=row[kept.bool()][None], use_cache=False).logits[0] for row, kept in zip(ids, mask, strict=True)
    ]
    expected = torch.cat(alone)
    expected_gradients = torch.autograd.grad(expected.log_softmax(-1).square().mean(), [*model.parameters()])
    passes = embedded_tokens(model)
    packing.without_padding(model, 9)
    passes.clear()
    ours = token_logits(model, side)
    assert passes == [TOKENS if family in SDPA_FAMILIES else ids.numel()]
    torch.testing.assert_close(ours.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(ours.log_softmax(-1).square().mean(), [*model.parameters()])
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, other / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", SDPA_FAMILIES)
def test_scores_of_every_family_equal_those_of_each_row_alone(family: str) -> None:
    model = families.scorer(family).eval()
    ids, mask = (part % ppo_tiny.VOCABULARY for part in padded("right"))
    ids = ids.masked_fill(mask == 0, ppo_tiny.PAD_ID)
    alone = [
        model(input_ids=row[kept.bool()][None], use_cache=False).logits[0] for row, kept in zip(ids, mask, strict=True)
    ]
    passes = embedded_tokens(model)
    packing.without_padding(model, 9)
    passes.clear()
    ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert passes == [TOKENS]
    torch.testing.assert_close(ours, torch.stack(alone), rtol=0, atol=1e-5)


def pairs(pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of two pairs, first the chosen texts, then the rejected; the pairs share 6 and 3 tokens."""
    texts = [[*range(10, 16), 1, 2, 3, 4, 5], [20, 21, 22, 1, 2], [*range(10, 16), 9, 8], [20, 21, 22, 9, 8, 7, 6]]
    rows = [torch.tensor(text) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    return ids, (ids != pad_token_id).long()


@pytest.mark.parametrize("family", ["gpt2", *SDPA_FAMILIES])
def test_pairs_score_as_their_texts_alone_and_their_prompt_is_computed_once(family: str) -> None:
    model = (without_dropout(tiny_reward(TOKENIZER)) if family == "gpt2" else families.scorer(family)).eval()
    pad_token_id = model.config.pad_token_id
    assert pad_token_id is not None
    ids, mask = pairs(pad_token_id)
    alone = [
        model(input_ids=row[kept.bool()][None], use_cache=False).logits[0] for row, kept in zip(ids, mask, strict=True)
    ]
    expected = torch.stack(alone)
    expected_gradients = torch.autograd.grad(expected.square().sum(), [*model.parameters()])
    passes = embedded_tokens(model)
    packing.without_padding(model, ids.shape[1])
    passes.clear()
    ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert passes == [11 + 5 + 2 + 4]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(ours.square().sum(), [*model.parameters()])
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, other / scale, rtol=0, atol=1e-5)


def test_a_text_that_continues_the_other_one_of_its_pair_keeps_its_last_token() -> None:
    model = without_dropout(tiny_reward(TOKENIZER)).eval()
    ids, mask = torch.tensor([[10, 11, 12, 13], [10, 11, 12, 250]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    model.config.pad_token_id = 250
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    passes = embedded_tokens(model)
    packing.without_padding(model, 4)
    passes.clear()
    ours = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert passes == [4 + 1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_the_last_feed_forward_layer_of_a_reward_model_computes_a_token_a_row() -> None:
    model = packed(without_dropout(tiny_reward(TOKENIZER))).eval()
    ids, mask = padded("right")
    computed: list[int] = []
    last: Any = model.base_model.h[-1]  # type: ignore[index]
    last.mlp.c_fc.register_forward_pre_hook(lambda _layer, inputs: computed.append(inputs[0].shape[1]))
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert computed == [len(LENGTHS)]


def test_a_model_whose_hooks_would_change_its_numbers_stays_padded(capsys: pytest.CaptureFixture[str]) -> None:
    attention.say_once.cache_clear()
    model = families.policy("llama")
    for layer in model.base_model.layers:  # type: ignore[union-attr]
        layer.self_attn.config = copy.copy(model.config)  # the hooks do not find it, so rows would not be apart
    expected = token_logits(model, "right")
    packing.without_padding(model, 9)
    assert torch.equal(token_logits(model, "right"), expected)
    assert "llama runs with padding: packed rows differ by " in capsys.readouterr().out


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[reportPrivateImportUsage]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_every_weight_gets_a_gradient_under_ddp() -> None:
    ids, mask = padded("right")
    model = packed(tiny_reward(TOKENIZER)).train()
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # the second pass fails if the first left a weight without a gradient
        parallel(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


ROWS = [
    {"prompt": "\n\nHuman: How do I bake bread?\n\nAssistant:", "chosen": " Mix flour and water.", "rejected": " No."},
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " What do you want from me?"},
    {"prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": " I do not know anything about that.", "rejected": " ?"},
]


def shared_tokens(chosen: list[int], rejected: list[int]) -> int:
    return next(place for place, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)


class FirstStep(TrainerCallback):
    """Keeps the gradients of the first step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = kwargs["model"].named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def first_step(kind: str, directory: Path, own: bool, adapter: bool) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of one step over all rows, by TRL's trainer of that kind."""
    args: dict[str, Any] = {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": len(ROWS),
        "max_length": None,
    }
    task = TaskType.CAUSAL_LM if kind == "sft" else TaskType.SEQ_CLS
    lora = LoraConfig(r=2, fan_in_fan_out=True, init_lora_weights=False, task_type=task)
    set_seed(0)
    model = without_dropout(tiny_policy(TOKENIZER) if kind == "sft" else tiny_reward(TOKENIZER))
    if own:
        packed(model)
    passes = embedded_tokens(model)
    padding = tokens.padding_copy(TOKENIZER, "right")
    callback = FirstStep()
    with warnings.catch_warnings():
        # TRL's configs set a field that transformers has deprecated, and peft reads another
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        common: dict[str, Any] = {"callbacks": [callback], "peft_config": lora if adapter else None}
        if kind == "sft":
            rows = Dataset.from_list(tokens.encode_sft(TOKENIZER, ROWS))
            row_tokens = sum(len(row) for row in rows["input_ids"])
            trainer = SFTTrainer(
                model, SFTConfig(**args), train_dataset=rows, processing_class=copy.deepcopy(TOKENIZER), **common
            )
        else:
            rows = Dataset.from_list(tokens.encode_reward(TOKENIZER, ROWS))
            row_tokens = sum(len(row) for side in ("chosen_ids", "rejected_ids") for row in rows[side])
            both = zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)
            row_tokens -= sum(shared_tokens(chosen, rejected) for chosen, rejected in both)  # which go in once
            trainer = RewardTrainer(model, RewardConfig(**args), train_dataset=rows, processing_class=padding, **common)
        trainer.train()
    assert (passes == [row_tokens]) == own
    return trainer.state.log_history[0]["loss"], callback.gradients


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_sft_and_reward_trainers_take_the_same_step_with_packing(kind: str, adapter: bool, tmp_path: Path) -> None:
    expected_loss, expected = first_step(kind, tmp_path, own=False, adapter=adapter)
    loss, gradients = first_step(kind, tmp_path, own=True, adapter=adapter)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    assert len(gradients) >= 4  # LoRA: two factors in each of two layers
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-5, msg=name)


def test_fused_activations_compute_the_same() -> None:
    ids, mask = padded("right")
    model = policy()
    before = model(input_ids=ids, attention_mask=mask).logits
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    packing.use_fused_activations(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=1e-5)


def test_rows_attend_to_themselves_within_the_block_only() -> None:
    ids, mask = padded("right")
    model = policy()
    assert isinstance(model.base_model, GPT2Model)
    expected = hidden(model.base_model, input_ids=ids, attention_mask=mask)[mask.bool()]
    packed = ids[mask.bool()][None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    inputs = {
        "input_ids": packed,
        "position_ids": positions,
        "attention_mask": torch.ones_like(packed),
        "packed_rows": attention.packed_rows(mask.bool()),
    }
    with packing._packed(model.base_model, inputs):
        apart = hidden(model.base_model, **inputs)
    torch.testing.assert_close(apart[0], expected, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
