"""Stage 1, supervised fine-tuning: the base model learns to give the chosen answers and to end them.

The loss is on the answer and its EOS only. TRL is handed tokens, not text, so what `make data` shows is what it
trains on, and no row is cut or dropped behind our back.
"""

import copy
import sys
from dataclasses import asdict

from datasets import Dataset
from peft import TaskType
from transformers import set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from gpt2_rlhf import data, launch, models, pipeline, rows_apart, scoring, tokens, training
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Outcome, Stage, newest_whole_checkpoint
from gpt2_rlhf.stopwatch import Stopwatch


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `sft` rows and leave the model in `stage.model_dir`, with the held-out loss before and after."""
    prepared = stage.needs["data"].directory
    train_rows, test_rows = data.load(prepared, "sft"), data.load(prepared, "test")
    tokenizer = models.load_base_tokenizer(settings.model)
    base = models.load_base(settings.model, settings.seed)
    batch_size = settings.evaluate.batch_size

    work = Stopwatch()
    with work.running():
        before = scoring.heldout_loss(base, tokenizer, test_rows, batch_size)
    rows_apart.use_fused_activations(base)
    rows_apart.without_padding(base)
    set_seed(stage.seed)
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(**training.arguments(settings, stage, settings.sft.args), max_length=None),
        train_dataset=Dataset.from_list([tokens.encode_sft(tokenizer, row) for row in train_rows]),
        eval_dataset=Dataset.from_list([tokens.encode_sft(tokenizer, row) for row in test_rows]),
        processing_class=copy.deepcopy(tokenizer),  # TRL writes to the one it gets
        peft_config=models.lora(settings.sft.peft, TaskType.CAUSAL_LM),
        callbacks=training.callbacks(stage),
    )
    with work.running():
        training.train(trainer, newest_whole_checkpoint(stage, launch.processes(settings)))
    if not trainer.is_world_process_zero():
        return Outcome({}, work.seconds)
    training.save(trainer.model, tokenizer, stage.model_dir)
    # read back from disk: what is measured is what the next stage gets
    saved = models.load_policy(str(stage.model_dir))
    with work.running():
        after = scoring.heldout_loss(saved, tokenizer, test_rows, batch_size)
    return Outcome(
        {
            "heldout_loss_before": asdict(before),
            "heldout_loss_after": asdict(after),
            "train_rows": len(train_rows),
            "steps": trainer.state.global_step,
        },
        work.seconds,
    )


if __name__ == "__main__":
    pipeline.main(sys.argv[1:], last="sft")
