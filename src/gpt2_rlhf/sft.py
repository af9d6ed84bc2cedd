"""Stage 1, supervised fine-tuning: the base model learns to give the chosen answers and to end them.

The loss is on the answer and its EOS only. TRL gets tokens, not text: it trains on exactly the rows that `make data`
shows, and cuts or drops none.
"""

import copy
from functools import partial

from datasets import Dataset
from transformers import TrainingArguments, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import model_reports
from gpt2_rlhf.launch import training
from gpt2_rlhf.launch.stopwatch import Stopwatch
from gpt2_rlhf.models import loading, model_checks, packing, tokens
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage


def check(settings: Settings, stage: Stage) -> TrainingArguments:
    """Return the stage's config, or raise a UserError for damaged weights or what TRL, a tracker or PEFT refuses."""
    model_checks.require_whole_weights(settings.model)
    config = training.check(stage.name, SFTConfig, training.arguments(stage, settings.sft.args))
    loading.check_lora(settings.model, settings.sft.peft, "sft.peft")
    return config


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `sft` rows, save the model in `stage.model_dir`, and return the held-out loss before and after."""
    prepared = stage.needs["data"].directory
    test_rows = tables.load(prepared, "test", settings.evaluate.pairs)
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    train_rows = tables.token_columns(prepared, "sft", partial(tokens.encode_sft, tokenizer))
    base = loading.to_measure(loading.load_base(settings.model, settings.seed), settings.launch)
    batch_size = settings.evaluate.batch_size

    work = Stopwatch()
    with work.running():
        before = model_reports.heldout_loss(base, tokenizer, test_rows, batch_size)
    packing.use_fused_activations(base)
    packing.without_padding(base, tables.longest_tokens(train_rows))
    set_seed(stage.seed)
    trainer = SFTTrainer(
        model=base,
        args=training.config(SFTConfig, stage, settings.sft.args),
        train_dataset=train_rows,
        eval_dataset=Dataset.from_list(tokens.encode_sft(tokenizer, test_rows)),
        processing_class=copy.deepcopy(tokenizer),  # TRL writes to the one it gets
        peft_config=loading.lora(settings.sft.peft, base, "sft.peft"),
        callbacks=training.callbacks(stage),
    )
    trained, train_s = training.trained_model(trainer, stage)
    if trained is None:
        return Outcome({}, work.seconds + train_s)
    loading.save(trained, tokenizer, stage.model_dir)
    # read back from disk, so that the model that the next stage gets is the one measured
    saved = loading.to_measure(loading.load_policy(str(stage.model_dir)), settings.launch)
    with work.running():
        after = model_reports.heldout_loss(saved, tokenizer, test_rows, batch_size)
    return Outcome(
        {
            "heldout_loss_before": before,
            "heldout_loss_after": after,
            "test_pairs": tables.size(prepared, "test"),
            "train_rows": len(train_rows),
            "steps": trainer.state.global_step,
        },
        work.seconds + train_s,
    )


if __name__ == "__main__":
    as_command.run("sft")
