"""Stage 3 with method=rloo: PPO's rival without a critic, on the same prompts, reward, KL penalty and episodes.

Several answers are sampled to a prompt, and the mean reward of the others is each one's baseline (Ahmadian et al. 2024,
arXiv:2402.14740). TRL gets token ids and not text: it samples after exactly the prompts that PPO gets, and the reward
is of exactly the ids that were sampled.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import calibration
from gpt2_rlhf.launch import training
from gpt2_rlhf.models import loading, packing, sampling, tokens
from gpt2_rlhf.ppo_trainer import Shaping, forward, gates, reward_scores, rollouts
from gpt2_rlhf.ppo_trainer.forward import Rows
from gpt2_rlhf.rows import tables
from gpt2_rlhf.store.stage import Outcome, Stage, manifest


def check(settings: Settings, stage: Stage) -> TrainingArguments:
    """Return the stage's config, or raise a UserError that names an argument to change; the data is ready."""
    config = training.check(stage.name, RLOOConfig, arguments(settings, stage))
    loading.check_lora(settings.model, settings.rloo.peft, "rloo.peft")
    needed, given = _prompts_at_once(config, stage), training.prompt_sizes(settings, stage).train_prompts
    if given < needed:
        raise UserError(
            f"rloo: {given} prompts are fewer than the {needed} of one batch of answers; give more prompts, or lower "
            "rloo.args.gradient_accumulation_steps or steps_per_generation"
        )
    return config


def arguments(settings: Settings, stage: Stage) -> dict[str, Any]:
    """Return the fields of RLOOConfig: one epoch of prompts that are drawn and ordered here."""
    return {**training.arguments(stage, settings.rloo.args), "num_train_epochs": 1, "shuffle_dataset": False}


def run(settings: Settings, stage: Stage) -> Outcome:
    """Train on the `ppo` prompts, save the policy in `stage.model_dir`, and return what was measured."""
    ppo, report = settings.ppo, manifest(stage.needs["reward"])["metrics"]
    fault = calibration.reward_model_fault(report) if ppo.reward.function is None else None
    forced = gates.pass_or_stop([fault], settings.force)
    tokenizer = tokens.load_base_tokenizer(settings.model, settings.data.template)
    padding = tokens.padding_copy(tokenizer, "left")
    pad_token_id = tokens.pad_id(padding)
    # the reference is loaded by TRL from the same folder
    policy = loading.load_policy(str(stage.needs["sft"].model_dir))
    reward_model = loading.on_device(loading.load_reward(str(stage.needs["reward"].model_dir), pad_token_id))
    config: Any = RLOOConfig(**arguments(settings, stage))
    prompts = _prompts(settings, stage, config, tokenizer)
    columns = max(map(len, prompts)) + settings.rloo.args["max_completion_length"]
    packing.use_fused_activations(policy)
    packing.without_padding(policy, columns)  # also since TRL gives no positions: GPT-2 would count its left padding
    set_seed(stage.seed)
    texts = partial(tables.prompts, stage.needs["data"].directory, "ppo")
    function = reward_scores.load(ppo.reward.function, padding, texts)

    trainer = Trainer(
        model=policy,
        reward_funcs=reward(
            reward_scores.scorer(function, reward_model, padding),
            reward_scores.shaping(ppo.reward, report),
            settings.rloo.missing_eos_penalty,
            padding,
        ),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=padding,
        peft_config=loading.lora(settings.rloo.peft, policy, "rloo.peft"),
        callbacks=training.callbacks(stage),
    )
    if trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        packing.use_fused_activations(reference)
        packing.without_padding(reference, columns)
    trained, train_s = training.trained_model(trainer, stage)
    if trained is None:
        return Outcome({}, train_s)
    loading.save(trained, tokenizer, stage.model_dir)
    return Outcome(
        {
            "prompts": training.prompt_sizes(settings, stage).train_prompts,
            "episodes": len(prompts) * config.num_generations,
            "generated_tokens": trainer.state.num_input_tokens_seen - config.num_generations * sum(map(len, prompts)),
            "updates": trainer.state.global_step,
            "kept_update": trainer.state.global_step,
            "stopped": None,
            "forced": forced,
        },
        train_s,
    )


class Trainer(RLOOTrainer):
    """TRL's RLOO on prompts of token ids, with PPO's sampler; a resumed one keeps the answers sampled before the kill.

    TRL's own sampler pads on the left, computes answers that have ended to the end of the batch, and takes options from
    the model's generation config.
    """

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> Any:
        new_tokens: Any = self.max_completion_length
        with self.accelerator.autocast():
            answers, logprobs = sampling.sample_ids(
                self.accelerator.unwrap_model(self.model),
                prompt_ids,
                torch.rand(len(prompt_ids), new_tokens, dtype=torch.float64),
                temperature=self.temperature,
                eos_token_id=tokens.eos_id(self._tokenizer),
                never_token_id=tokens.pad_id(self._tokenizer),
                batch_size=len(prompt_ids),
            )
        self._sampled = torch.tensor([[sum(row), len(row)] for row in logprobs])
        return answers

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        sampled, lengths = self._sampled.T
        gap = ((batch["old_logps"].cpu() - sampled).abs() / lengths).max()
        if not gap <= rollouts.MAX_MEAN_GAP_NATS:
            family = self.accelerator.unwrap_model(self.model).config.model_type
            raise UserError(
                f"rloo: {family}: sampling and the pass that trains differ by {gap:.3g} nats a token; expected equal "
                f"up to rounding ({rollouts.MAX_MEAN_GAP_NATS:g}): it would train on wrong numbers; set method=ppo, or "
                "another model"
            )
        return batch

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        torch.save([self._step, self._buffered_inputs], self._answers_file(folder))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            kept = torch.load(self._answers_file(Path(checkpoint)), self.accelerator.device, weights_only=True)
            self._step, self._buffered_inputs = kept

    def _answers_file(self, folder: Path) -> Path:
        return folder / f"answers_{self.accelerator.process_index}.pt"


def reward(
    score: Callable[[Rows], torch.Tensor], shaping: Shaping, penalty: float, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., list[float | None]]:
    """Return PPO's reward as a reward function of TRL: shaped scores, less a penalty where EOS was not sampled.

    The function raises UserError for scores that are not finite, which TRL would leave out without an error.
    """
    pad_token_id, eos_token_id = tokens.pad_id(tokenizer), tokens.eos_id(tokenizer)
    device = torch.accelerator.current_accelerator(check_available=True)

    @torch.no_grad()
    def shaped(prompts: Sequence[list[int]], completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        rows = forward.padded(prompts, completion_ids, max(map(len, completion_ids)), pad_token_id, device)
        scores = shaping(score(rows))
        if not scores.isfinite().all():
            raise UserError(
                "rloo: a score is not finite; expected finite numbers: lower rloo.args.learning_rate, or check the "
                "reward model or ppo.reward.function"
            )
        without_end = torch.tensor([ids[-1] != eos_token_id for ids in completion_ids], device=scores.device)
        return (scores - penalty * without_end).tolist()

    return shaped


def _prompts_at_once(config: Any, stage: Stage) -> int:
    answers = config.per_device_train_batch_size * config.steps_per_generation * int(stage.inputs["processes"])
    return answers // config.num_generations


def _prompts(settings: Settings, stage: Stage, config: Any, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the prompts of the whole run in order, those of a resumed one as well; TRL would shuffle them anew."""
    rows = tables.token_columns(stage.needs["data"].directory, "ppo", partial(tokens.encode_ppo, tokenizer))
    at_once = _prompts_at_once(config, stage)
    prompts = rows["input_ids"][training.prompt_sizes(settings, stage).withheld_prompts :]
    count = -(-settings.rloo.episodes // (at_once * config.num_generations))
    return [ids for batch in range(count) for ids in rollouts.prompt_batch(prompts, batch, at_once, stage.seed)]


if __name__ == "__main__":
    as_command.run("rloo")
