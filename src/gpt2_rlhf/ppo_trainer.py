"""TRL's PPO, repaired: a policy, a reward model and prompts become a policy with higher reward, and can resume.

The algorithm is TRL 1.12's `PPOTrainer.train()`, untouched; that release is the last with PPO (huggingface/trl#7020)
and will get no fixes. What is mended here is around it: each repair has a test in which the stock trainer does
the wrong thing, so that it can go when the stock one does the right thing.
"""

import copy
import gc
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from peft import PeftConfig
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from gpt2_rlhf import ppo_checkpoint, ppo_rollout, ppo_speed, rows_apart, tokens
from gpt2_rlhf.errors import UserError
from gpt2_rlhf.ppo_loader import PromptBatches


def check(args: PPOConfig, prompt_count: int, world_size: int) -> None:
    """Refuse arguments with which PPO would hang, crash late, or train something else than was asked.

    Raises:
        UserError: names the argument, and what to set instead.
    """
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    batch = rows * world_size
    if rows < 2:
        raise UserError(
            "ppo.args: per_device_train_batch_size x gradient_accumulation_steps is 1; advantages are normalised over "
            "a process's rollouts, which needs 2 or more"
        )
    if prompt_count < batch:
        raise UserError(
            f"ppo: {prompt_count} prompts are fewer than one rollout batch of {batch} (per_device_train_batch_size "
            f"{args.per_device_train_batch_size} x gradient_accumulation_steps {args.gradient_accumulation_steps} x "
            f"{world_size} processes); give more prompts or lower ppo.args.gradient_accumulation_steps"
        )
    if rows % args.num_mini_batches:
        raise UserError(
            f"ppo.args.num_mini_batches: {args.num_mini_batches} does not divide the {rows} rollouts of a process "
            "(per_device_train_batch_size x gradient_accumulation_steps); choose a divisor"
        )
    if args.whiten_rewards and rows // args.num_mini_batches < 8:
        raise UserError(
            f"ppo.args.whiten_rewards: needs mini-batches of 8 or more, not {rows // args.num_mini_batches}; "
            "raise ppo.args.gradient_accumulation_steps or lower num_mini_batches"
        )
    if args.stop_token != "eos":
        raise UserError(
            f"ppo.args.stop_token: {args.stop_token!r} would let no answer end; it must be 'eos', the token that SFT "
            "ends answers with"
        )
    if args.num_sample_generations:
        raise UserError(
            f"ppo.args.num_sample_generations: {args.num_sample_generations} would do nothing: TRL takes samples from "
            "an evaluation set, and PPO has none; set it to 0"
        )


def check_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Dataset, response_length: int, positions: int) -> None:
    """Refuse a tokenizer that breaks PPO's masks, and prompts that leave no room for the answer.

    Args:
        prompts: a dataset with the column `input_ids`.
        positions: the number of positions of the smallest of the models.

    Raises:
        UserError: names what is wrong, and the prompt when one is too long.
    """
    if tokenizer.padding_side != "left":
        raise UserError(
            f"ppo: the tokenizer pads on the {tokenizer.padding_side}, so answers would follow padding; set "
            "padding_side='left' (tokens.padding_copy)"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"ppo: the tokenizer pads with {tokenizer.pad_token!r}, its EOS is {tokenizer.eos_token!r}; with EOS as "
            "padding PPO never trains the EOS, so give it tokens.padding_copy of the tokenizer"
        )
    if "input_ids" not in prompts.column_names:
        raise UserError(f"ppo: the prompts have columns {prompts.column_names}; wanted input_ids (tokens.encode_ppo)")
    longest_tokens, row = max((len(ids), row) for row, ids in enumerate(prompts["input_ids"]))
    if longest_tokens + response_length > positions:
        raise UserError(
            f"ppo: prompt {row} has {longest_tokens} tokens and the answer may take {response_length}, but the models "
            f"have {positions} positions; lower data.max_prompt_tokens or ppo.args.response_length"
        )


class RepairedPPOTrainer(PPOTrainer):
    """TRL's PPO trainer without its known defects, with full checkpoints and exact resume.

    Not supported, and refused: DeepSpeed and FSDP. Every update logs `grad_norm`, the mean over its optimizer steps of
    the gradient's norm (policy and value model together) before clipping to `args.max_grad_norm` (0 clips nothing).
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None,
        reward_model: PreTrainedModel,
        train_dataset: Dataset,
        value_model: PreTrainedModel,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        """As TRL's; with `ref_model` None it is a copy of `model`, or with `peft_config` the base under the adapter.

        Raises:
            UserError: from `check` and `check_tokens`, before anything is built.
        """
        args = copy.copy(args)  # TRL writes derived sizes into it
        _ = args.device  # starts the process group, so that the next line knows how many we are
        processes = PartialState().num_processes
        check(args, len(train_dataset), processes)
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        positions = min(part.config.max_position_embeddings for part in (model, reward_model, value_model))
        check_tokens(processing_class, train_dataset, args.response_length, positions)
        prompts = train_dataset.select_columns(["input_ids"])  # TRL's collator fails on text columns

        set_seed(args.seed)  # adapters draw their weights from the global generator
        with _harmless_warnings_silenced(), ppo_speed.fast():
            super().__init__(
                args=args,
                processing_class=processing_class,
                model=model,
                ref_model=ref_model,
                reward_model=reward_model,
                train_dataset=prompts,
                value_model=value_model,
                callbacks=callbacks,
                peft_config=peft_config,
            )
        scorers = [self.value_model, self.reward_model]
        rows_apart.use_fused_activations(*scorers, *self._language_models())
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise UserError("ppo: DeepSpeed and FSDP are not supported; launch with plain data parallelism")
        if self.accelerator.unwrap_model(self.model) is not self.model:
            # TRL reads model.policy, which DDP hides; set past nn.Module, which would register the weights twice
            object.__setattr__(self.model, "policy", self.policy_model)

        assert args.output_dir is not None
        assert args.num_total_batches is not None
        assert isinstance(self.optimizer, AcceleratedOptimizer)
        self.run_dir = Path(args.output_dir)
        self.episodes_per_update = rows * processes
        self._updates = args.num_total_batches
        self._pad_token_id = tokens.pad_id(processing_class)
        # TRL would count gradient_accumulation_steps microbatches to an optimizer step, over mini-batches' bounds
        microbatches = math.ceil(rows / args.num_mini_batches / args.per_device_train_batch_size)
        args.gradient_accumulation_steps = microbatches  # shapes TRL's statistics
        self.accelerator.gradient_accumulation_steps = microbatches
        # Not prepared by Accelerate: it steps on every microbatch of a prepared loader's last batch (accelerate#1847)
        self.dataloader = PromptBatches(
            prompts=prompts,  # type: ignore[arg-type]  # datasets.Dataset is a sequence in all but name
            collate=DataCollatorWithPadding(processing_class),
            rows=rows,
            seed=args.seed,
            rank=self.accelerator.process_index,
            world_size=processes,
        )
        self._grad_norms: list[torch.Tensor] = []
        self.optimizer.optimizer.register_step_pre_hook(self._clip_gradients)

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Run PPO to `args.total_episodes`, from the start or from a `checkpoint-N` folder of the same arguments.

        On CPU a resumed run ends with the weights of an uninterrupted one, to the bit.

        Raises:
            UserError: the folder is not a whole checkpoint of a run with this batch size and number of processes.
        """
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if checkpoint is not None:
            ppo_checkpoint.check(checkpoint, self.episodes_per_update, self.accelerator.num_processes)

        def restore() -> None:
            self.dataloader.position = 0
            if checkpoint is not None:
                ppo_checkpoint.load(self, checkpoint)
                self.dataloader.position = self.state.global_step
                self.args.num_total_batches = self._updates - self.state.global_step

        def seed() -> None:
            set_seed(self.local_seed)
            self._load_rng_state(None if checkpoint is None else str(checkpoint))

        callbacks = self.callback_handler.callbacks
        # Trackers must see the restored state, and may draw random numbers: first the state, last the generators
        self.callback_handler.callbacks = [_OnTrainBegin(restore), *callbacks, _OnTrainBegin(seed)]
        self.accelerator.print = _say_nothing  # train() prints a banner
        # TRL collects garbage twice an update, 0.3 s each while torch's own objects are looked at
        gc.collect()
        gc.freeze()
        try:
            with (
                _harmless_warnings_silenced(),
                ppo_rollout.own_rollouts(),
                ppo_rollout.token_banned(self._pad_token_id, *self._language_models()),
                ppo_speed.fast(),
            ):
                super().train()
        finally:
            gc.unfreeze()
            del self.accelerator.print
            self.callback_handler.callbacks = callbacks
            self.args.num_total_batches = self._updates

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics of one update, with the gradient norm."""
        logs["grad_norm"] = torch.stack(self._grad_norms).mean().item()
        self._grad_norms.clear()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy alone, or its adapter: no tokenizer, whose padding copy must not be saved."""
        wrapper = self.model
        self.model = self.policy_model  # TRL looks for it under the wrapper, where DDP hides it
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self.model = wrapper

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            ppo_checkpoint.write_model(self.policy_model, Path(output_dir or self.run_dir))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        ppo_checkpoint.save(self)

    def _language_models(self) -> list[torch.nn.Module]:
        return [self.policy_model] if self.ref_model is None else [self.policy_model, self.ref_model]

    def _clip_gradients(self, *_step: Any) -> None:
        limit = self.args.max_grad_norm or math.inf
        self._grad_norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))


class _OnTrainBegin(TrainerCallback):
    """Calls a function when train() has zeroed its counters and not yet read them."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


def _say_nothing(*_words: Any) -> None:
    pass


@contextmanager
def _harmless_warnings_silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        # TRL's wrapper reads a deprecated attribute of the policy (ppo_trainer.py, PolicyAndValueWrapper)
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield
