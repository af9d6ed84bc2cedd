"""Stage 3 with method=dpo: learn from the reward model's pairs to prefer the chosen answers, without its scores.

The SFT model is the start and the reference (Rafailov et al. 2023, arXiv:2305.18290). Nothing is sampled, so no policy
exploits the reward model here, and none learns from its own answers. TRL gets tokens, as in SFT.
"""

from functools import partial
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from gpt2_rlhf.config import as_command, methods
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.launch import training
from gpt2_rlhf.models import loading, packing, tokens
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage


def check(settings: Settings, stage: Stage) -> TrainingArguments:
    """Return the stage's config, or raise a UserError that names what TRL, a tracker or PEFT refuses."""
    config = training.check(stage.name, DPOConfig, training.arguments(stage, settings.dpo.args))
    loading.check_lora(settings.model, settings.dpo.peft, "dpo.peft")
    return config


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `reward` rows, save the policy in `stage.model_dir`, and return what the run took."""
    prepared, sft_dir = stage.needs["data"].directory, str(stage.needs["sft"].model_dir)
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    rows = tables.token_columns(prepared, methods.table_of(stage.name), partial(tokens.encode_dpo, tokenizer))
    test_rows = tables.load(prepared, "test", settings.evaluate.pairs)
    policy = loading.load_policy(sft_dir)
    adapter = loading.lora(settings.dpo.peft, policy, "dpo.peft")
    reference = loading.load_policy(sft_dir) if adapter is None else None
    columns = sum(
        tables.longest_tokens(rows.select_columns(part)) for part in (["prompt_ids"], ["chosen_ids", "rejected_ids"])
    )
    for model in (policy, reference) if reference is not None else (policy,):
        packing.use_fused_activations(model)
        packing.without_padding(model, columns)
    set_seed(stage.seed)
    trainer = Trainer(
        model=policy,
        ref_model=reference,
        args=training.config(DPOConfig, stage, settings.dpo.args),
        train_dataset=rows,
        eval_dataset=Dataset.from_list(tokens.encode_dpo(tokenizer, test_rows)),
        processing_class=tokens.padding_copy(tokenizer, "right"),
        peft_config=adapter,
        callbacks=training.callbacks(stage),
    )
    trained, train_s = training.trained_model(trainer, stage)
    if trained is None:
        return Outcome({}, train_s)
    loading.save(trained, tokenizer, stage.model_dir)
    steps = trainer.state.global_step
    return Outcome(
        {"train_rows": len(rows), "updates": steps, "kept_update": steps, "stopped": None, "forced": []}, train_s
    )


class Trainer(DPOTrainer):
    """TRL's DPO on pairs of token ids: it encodes, cuts and drops none."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset


if __name__ == "__main__":
    as_command.run("dpo")
