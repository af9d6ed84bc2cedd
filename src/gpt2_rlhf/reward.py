"""Stage 2, the reward model: the SFT model with one score as its head learns which of two answers people prefer.

The score is read at EOS, where PPO reads it too (token contract). Accuracy is computed here over every held-out pair,
since RewardTrainer's own `eval_accuracy` is a mean of batch means.

The judge is a second reward model, trained by the same recipe on rows that nothing else uses and with another seed. PPO
is never trained on it. Two reward models share what the data say and differ in their errors (Coste et al. 2023,
arXiv:2310.02743), so a policy that gains with one and loses with the other exploits errors.
"""

from functools import partial

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainingArguments, set_seed
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import model_reports
from gpt2_rlhf.launch import training
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, packing, tokens
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage


def check(settings: Settings, stage: Stage) -> TrainingArguments:
    """Return the stage's config, or raise a UserError that names what TRL, a tracker or PEFT refuses."""
    config = training.check(stage.name, RewardConfig, training.arguments(stage, settings.reward.args))
    loading.check_lora(settings.model, settings.reward.peft, "reward.peft", AutoModelForSequenceClassification)
    return config


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the stage's own rows, save the model in `stage.model_dir`, and return its held-out accuracy."""
    prepared = stage.needs["data"].directory
    test_rows = tables.load(prepared, "test", settings.evaluate.pairs)
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    train_rows = tables.token_columns(prepared, stage.name, partial(tokens.encode_reward, tokenizer))
    padding = tokens.padding_copy(tokenizer, "right")
    set_seed(stage.seed)  # before the score head is drawn
    model = loading.load_reward(str(stage.needs["sft"].model_dir), tokens.pad_id(padding))
    packing.use_fused_activations(model)
    packing.without_padding(model, tables.longest_tokens(train_rows))
    trainer = RewardTrainer(
        model=model,
        args=training.config(RewardConfig, stage, settings.reward.args),
        train_dataset=train_rows,
        eval_dataset=Dataset.from_list(tokens.encode_reward(tokenizer, test_rows)),
        processing_class=padding,
        peft_config=loading.lora(settings.reward.peft, model, "reward.peft"),
        callbacks=training.callbacks(stage),
    )
    trained, train_s = training.trained_model(trainer, stage)
    if trained is None:
        return Outcome({}, train_s)
    loading.save(trained, tokenizer, stage.model_dir)
    saved = loading.to_measure(loading.load_reward(str(stage.model_dir), tokens.pad_id(padding)), settings.launch)
    work = Stopwatch()
    with work.running():
        report = model_reports.reward_report(saved, tokenizer, test_rows, settings.evaluate.batch_size, stage.seed)
    return Outcome(
        {
            **report,
            "test_pairs": tables.size(prepared, "test"),
            "train_rows": len(train_rows),
            "steps": trainer.state.global_step,
        },
        work.seconds + train_s,
    )


if __name__ == "__main__":
    as_command.run("reward")
