"""Stage 2, the reward model: the SFT model with one score as its head learns which of two answers people prefer.

The score is read at EOS, which is where PPO reads it (token contract). Accuracy is computed here over every held-out
pair: RewardTrainer's own `eval_accuracy` is a mean of batch means.
"""

import sys

from datasets import Dataset
from peft import TaskType
from transformers import set_seed
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from gpt2_rlhf import data, launch, models, pipeline, rows_apart, scoring, tokens, training
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Outcome, Stage, newest_whole_checkpoint
from gpt2_rlhf.stopwatch import Stopwatch


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the stage's own rows (`reward` or `judge`); leave the model in `stage.model_dir`, with its accuracy."""
    prepared = stage.needs["data"].directory
    train_rows, test_rows = data.load(prepared, stage.name), data.load(prepared, "test")
    tokenizer = models.load_base_tokenizer(settings.model)
    padding = tokens.padding_copy(tokenizer, "right")
    set_seed(stage.seed)  # before the score head is drawn
    model = models.load_reward(str(stage.needs["sft"].model_dir), tokens.pad_id(padding))
    rows_apart.use_fused_activations(model)
    rows_apart.without_padding(model)

    work = Stopwatch()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**training.arguments(settings, stage, settings.reward.args), max_length=None),
        train_dataset=Dataset.from_list([tokens.encode_reward(tokenizer, row) for row in train_rows]),
        eval_dataset=Dataset.from_list([tokens.encode_reward(tokenizer, row) for row in test_rows]),
        processing_class=padding,
        peft_config=models.lora(settings.reward.peft, TaskType.SEQ_CLS),
        callbacks=training.callbacks(stage),
    )
    with work.running():
        training.train(trainer, newest_whole_checkpoint(stage, launch.processes(settings)))
    if not trainer.is_world_process_zero():
        return Outcome({}, work.seconds)
    training.save(trainer.model, tokenizer, stage.model_dir)
    saved = models.load_reward(str(stage.model_dir), tokens.pad_id(padding))
    with work.running():
        report = scoring.reward_report(saved, tokenizer, test_rows, settings.evaluate.batch_size, stage.seed)
    return Outcome(
        {**report, "train_rows": len(train_rows), "steps": trainer.state.global_step},
        work.seconds,
    )


if __name__ == "__main__":
    pipeline.main(sys.argv[1:], last="reward")
