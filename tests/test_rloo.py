"""RLOO on token ids: what it samples after, what it is rewarded for, and that a killed run ends as one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed
from trl.trainer.rloo_config import RLOOConfig

from gpt2_rlhf import rloo
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import loading, packing, scoring, tokens
from gpt2_rlhf.ppo_trainer import Shaping, forward
from gpt2_rlhf.ppo_trainer.forward import Rows
from helpers.tiny import eos_prone, tiny_reward, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of TRL
TEXTS = ("\n\nHuman: Hi\n\nAssistant:", "\n\nHuman: Tell me about the sea, please.\n\nAssistant:")
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [row["input_ids"] for row in tokens.encode_ppo(tokenizer, [{"prompt": text} for text in TEXTS])]


@pytest.fixture(scope="module")
def sft_dir(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    model = eos_prone(tokenizer)
    model.lm_head.register_parameter("bias", None)  # as GPT-2 has none, so that the reference is loaded whole
    loading.save(model, tokenizer, folder)
    return folder


def trainer(
    sft_dir: Path,
    output_dir: Path,
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    rounds: int = 1,
    packs: bool = True,
) -> Any:
    """A trainer as the stage makes it, rewarded for low token ids; each round samples 4 answers and learns twice."""
    padding = tokens.padding_copy(tokenizer, "left")
    policy = loading.load_policy(str(sft_dir))
    columns = max(map(len, prompts)) + 6
    if packs:
        packing.without_padding(policy, columns)
    set_seed(3)
    config = RLOOConfig(
        output_dir=str(output_dir),
        seed=3,
        num_train_epochs=1,
        shuffle_dataset=False,
        disable_dropout=True,
        per_device_train_batch_size=2,
        steps_per_generation=2,
        num_generations=2,
        max_completion_length=6,
        temperature=TEMPERATURE,
        learning_rate=1e-2,
        save_steps=1,
        report_to="none",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        activation_checkpointing=False,
    )

    def low_ids(prompts: Any, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [-float(np.mean(ids)) for ids in completion_ids]

    made = rloo.Trainer(
        model=policy,
        reward_funcs=low_ids,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts * rounds}),
        processing_class=padding,
    )
    reference: Any = made.ref_model
    packing.without_padding(reference, columns)
    return made


def test_answers_follow_exactly_the_prompts_of_ppo_and_have_their_probability_there(
    sft_dir: Path, tmp_path: Path, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    made = trainer(sft_dir, tmp_path, prompts, tokenizer)
    repeated = [ids for ids in prompts for _ in range(2)]
    batch = made._generate_and_score_completions([{"prompt": ids} for ids in repeated])
    real = [row[mask.bool()].tolist() for row, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    assert real == repeated
    answers = [
        row[mask.bool()].tolist() for row, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    expected = scoring.sequence_logprobs(loading.load_policy(str(sft_dir)), repeated, answers, TEMPERATURE, 4)
    assert batch["old_logps"].tolist() == pytest.approx([float(row.sum()) for row in expected], abs=1e-4)


def test_positions_that_count_the_padding_stop_the_stage(
    sft_dir: Path, tmp_path: Path, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    made = trainer(sft_dir, tmp_path, prompts, tokenizer, packs=False)  # as stock TRL computes GPT-2
    with pytest.raises(UserError, match="rloo: gpt2: sampling and the pass that trains differ by"):
        made._generate_and_score_completions([{"prompt": ids} for ids in prompts for _ in range(2)])


def test_the_reference_is_the_sft_model(
    sft_dir: Path, tmp_path: Path, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    made = trainer(sft_dir, tmp_path, prompts, tokenizer)
    made._generate_and_score_completions([{"prompt": ids} for ids in prompts for _ in range(2)])
    assert made._metrics["eval"]["kl"] == pytest.approx([0], abs=1e-6)


def test_a_run_killed_between_the_steps_of_one_batch_of_answers_ends_as_one_that_was_not(
    sft_dir: Path, tmp_path: Path, prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    whole = trainer(sft_dir, tmp_path, prompts, tokenizer, rounds=2)
    whole.train()
    assert whole.state.global_step == 4
    resumed = trainer(sft_dir, tmp_path / "other", prompts, tokenizer, rounds=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def reward_of(tokenizer: PreTrainedTokenizerBase, score: Callable[[Rows], torch.Tensor] | None = None) -> Any:
    padding = tokens.padding_copy(tokenizer, "left")
    model = loading.on_device(tiny_reward(tokenizer))
    return rloo.reward(score or (lambda rows: forward.answer_scores(model, rows)), Shaping(0.5, 2.0), 3.0, padding)


def test_the_reward_is_the_score_of_the_sampled_ids_less_the_penalty_without_eos(
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    eos, model = tokens.eos_id(tokenizer), tiny_reward(tokenizer)
    answers = [[40, 41, eos], [50, 51, 52, 53]]
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    scores = (scoring.score(model, tokens.pad_id(tokens.padding_copy(tokenizer, "left")), sequences, 2) - 0.5) / 2.0
    assert reward_of(tokenizer)(prompts, answers) == pytest.approx([scores[0], scores[1] - 3.0], abs=1e-5)


def test_a_score_that_is_not_finite_stops_the_stage(
    prompts: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match="rloo: a score is not finite"):
        reward_of(tokenizer, lambda rows: torch.full((len(rows.token_ids),), torch.nan))(prompts, [[40], [41]])
