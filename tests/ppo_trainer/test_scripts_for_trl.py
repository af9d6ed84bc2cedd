import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, GPT2LMHeadModel
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.ppo_trainer import PPOConfig, PPOTrainer
from helpers import ppo_tiny as tiny

pytestmark = pytest.mark.usefixtures("small_overheads")


# PPOConfig sets a field that transformers has deprecated, and TRL's wrapper reads one
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", [TrlPPOTrainer, PPOTrainer], ids=["import of TRL", "import of ours"])
def test_a_script_in_the_usual_form_runs_with_one_import_changed(tmp_path, capsys, kind):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.padding_side = "left"
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # its id lies outside the models' vocabulary
    rows = tiny.prompts(8)
    trainer = kind(
        args=PPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=2,
            total_episodes=8,
            num_ppo_epochs=2,
            response_length=tiny.RESPONSE,
            missing_eos_penalty=1.0,
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=tiny.policy(),
        ref_model=tiny.policy(),
        reward_model=tiny.scorer(1),
        value_model=tiny.scorer(2),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        data_collator=DataCollatorWithPadding(tokenizer),
        peft_config=None,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    trainer.generate_completions()
    assert trainer.state.global_step == 2
    assert tiny.digest(GPT2LMHeadModel.from_pretrained(tmp_path / "model")) == tiny.digest(trainer.policy_model)
    printed = capsys.readouterr().out
    assert printed.count("model response") == 3  # num_sample_generations is 10: a table for each update, and one more
    notices = [line for line in printed.splitlines() if line.startswith("ppo: ")]
    if kind is PPOTrainer:
        assert notices == [
            "ppo: stop_token is not set; answers end at EOS, as with stop_token='eos'",
            "ppo: bf16 is on, as PPOConfig sets it, and is slow on a CPU; bf16=False trains in float32",
        ]
    else:
        assert notices == []


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({"value_model": None}, "PPOTrainer: value_model is None; it is required"),
        ({"reward_model": None}, "PPOTrainer: reward_model is None; pass a reward model, or a score_function"),
        ({"reward_model": print, "value_model": print}, "reward_model and value_model are one model"),
        ({"data_collator": print}, "data_collator is a builtin_function_or_method, which would not be called"),
        ({"eval_dataset": [], "score_function": len}, "eval_dataset with score_function: .* leave one of the two out"),
        ({"eval_dataset": {"test": []}}, "eval_dataset has columns None; expected a Dataset with input_ids"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_parts_that_would_not_be_used_or_are_missing_are_refused(tmp_path, parts, line):
    given: dict[str, Any] = {"reward_model": tiny.scorer(1), "value_model": tiny.scorer(2), **parts}
    with pytest.raises(UserError, match=line):
        PPOTrainer(
            args=tiny.arguments(tmp_path),
            processing_class=tiny.padding_tokenizer(),
            model=tiny.policy(),
            ref_model=None,
            train_dataset=tiny.prompts(),
            **given,
        )


def test_a_stop_token_id_must_be_that_of_eos(tmp_path):
    with pytest.raises(
        UserError, match=r"stop_token_id: 7 is not the tokenizer's EOS \(399\).* set tokenizer.eos_token"
    ):
        tiny.ours(tiny.arguments(tmp_path, stop_token=None, stop_token_id=7))
    trainer = tiny.ours(tiny.arguments(tmp_path, stop_token=None, stop_token_id=tiny.EOS_ID))
    assert trainer.policy_model.generation_config.eos_token_id == tiny.EOS_ID


def test_an_optimizer_and_a_schedule_that_are_passed_are_used(tmp_path):
    model, value_model = tiny.policy(), tiny.scorer(2)
    optimizer = torch.optim.SGD([*model.parameters(), *value_model.parameters()], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (update + 1))
    args = tiny.arguments(tmp_path, warmup_steps=1)
    trainer: Any = tiny.ours(args, model=model, value_model=value_model, optimizers=(optimizer, schedule))
    before = tiny.digest(model)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert tiny.logged(trainer, "lr") == [0.5, 0.25]
    assert tiny.digest(model) != before


def test_padding_in_the_prompts_is_left_out(tmp_path):
    padded = [{"input_ids": [tiny.PAD_ID] * 3 + ids} for ids in tiny.prompts()["input_ids"]]
    digests = set()
    for rows in (tiny.prompts(), Dataset.from_list(padded)):
        trainer = tiny.ours(tiny.arguments(tmp_path, total_episodes=4), train_dataset=rows)
        trainer.train()
        digests.add(tiny.trained_digest(trainer))
    assert len(digests) == 1
