"""DPO on pairs of token ids: what it learns from, and that its reference is the SFT model."""

import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig

from gpt2_rlhf import dpo
from gpt2_rlhf.models import packing, tokens
from helpers.tiny import tiny_policy, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of TRL
ROWS = [
    {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello there.", "rejected": " No."},
    {
        "prompt": "\n\nHuman: Tell me about the sea.\n\nAssistant:",
        "chosen": " It is wide.",
        "rejected": " What sea is it?",
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture
def trainer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    policy, reference = tiny_policy(tokenizer), tiny_policy(tokenizer)
    packing.without_padding(policy, 64)  # of the policy alone: the loss shows that both passes give the same numbers
    config = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, report_to="none", bf16=False, use_cpu=True,
        disable_tqdm=True, activation_checkpointing=False, max_length=None,
    )  # fmt: skip
    return dpo.Trainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(tokens.encode_dpo(tokenizer, ROWS)),
        processing_class=tokens.padding_copy(tokenizer, "right"),
    )


def test_dpo_learns_from_the_tokens_of_the_reward_model(trainer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    order = {tuple(row["prompt_ids"]): place for place, row in enumerate(trainer.train_dataset)}
    (batch,) = trainer.get_train_dataloader()
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    learnt = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    expected = tokens.encode_reward(tokenizer, ROWS)
    prompts = tokens.encode_ppo(tokenizer, ROWS)
    for place, (chosen, rejected) in enumerate(zip(texts[:2], texts[2:], strict=True)):
        prompt_tokens = len(chosen) - len(learnt[place])
        row = order[tuple(chosen[:prompt_tokens])]
        assert chosen[:prompt_tokens] == prompts[row]["input_ids"]
        assert (chosen, rejected) == (expected[row]["chosen_ids"], expected[row]["rejected_ids"])
        assert learnt[place][-1] == learnt[2 + place][-1] == tokens.eos_id(tokenizer)


def test_before_the_first_step_the_policy_is_the_reference(trainer: Any) -> None:
    (batch,) = trainer.get_train_dataloader()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-5)
