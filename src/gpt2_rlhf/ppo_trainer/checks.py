"""Refuse what PPO cannot train with: arguments, tokenizers and prompts on which TRL's hangs, crashes or goes wrong."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase
from trl.experimental.ppo import PPOConfig

from gpt2_rlhf.config.errors import UserError


def check(args: PPOConfig, prompt_count: int, world_size: int) -> None:
    """Raise a UserError that names the argument if PPO would hang, crash late, or ignore a setting."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    batch = rows * world_size
    if batch < 2:
        raise UserError(
            "ppo.args: per_device_train_batch_size x gradient_accumulation_steps is 1; advantages are normalised over "
            "the rollouts of an update, which needs 2 or more"
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
    if args.ref_adapter_name is not None:
        raise UserError(
            f"ppo.args.ref_adapter_name: {args.ref_adapter_name!r}: the reference is ref_model, or the policy without "
            "its adapter; leave it out, and pass another reference as ref_model"
        )
    for name in ("logging_strategy", "save_strategy", "eval_strategy"):
        strategy = getattr(args, name).value
        if strategy not in ("no", "steps"):
            raise UserError(f"ppo.args.{name}: {strategy}: PPO counts updates; expected steps or no")


def prepare(
    args: PPOConfig, tokenizer: PreTrainedTokenizerBase, parts: Mapping[str, Any], scores_by_function: bool
) -> tuple[PPOConfig, list[list[int]]]:
    """Return a copy of `args` as TRL's constructor needs them, and the prompts' token ids without padding.

    parts: the other arguments of TRL's PPOTrainer by name.

    Raises:
        UserError: names the argument or prompt with which PPO cannot train, and what to do.
    """
    args = copy.copy(args)  # TRL writes derived sizes into it
    _ = args.device  # starts the process group, so that the number of processes is known
    processes = PartialState().num_processes
    _check_parts(parts, scores_by_function)
    if args.fsdp:
        _check_sharding(args, parts, processes)
    check(args, len(parts["train_dataset"]), processes)
    _check_tokenizer(tokenizer)
    prompts = [
        [token_id for token_id in ids if token_id != tokenizer.pad_token_id]
        for ids in parts["train_dataset"].with_format(None)["input_ids"]
    ]
    models = [parts[name] for name in ("model", "reward_model", "value_model") if parts[name] is not None]
    positions = min(model.config.max_position_embeddings for model in models)
    longest_tokens, row = max((len(ids), row) for row, ids in enumerate(prompts))
    if longest_tokens + args.response_length > positions:
        raise UserError(
            f"ppo: prompt {row} has {longest_tokens} tokens and the answer may take {args.response_length}, but the "
            f"models have {positions} positions; lower data.max_prompt_tokens or ppo.args.response_length"
        )
    notices = _stop_at_eos(args, tokenizer)
    if args.bf16 and args.device.type == "cpu":
        notices.append("ppo: bf16 is on, as PPOConfig sets it, and is slow on a CPU; bf16=False trains in float32")
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if args.max_steps > 0:
        args.total_episodes = args.max_steps * batch
    elif args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * len(prompts))
    updates = math.ceil(args.total_episodes / batch)
    if (rounded := updates * batch) != args.total_episodes:
        notices.append(
            f"ppo: total_episodes {args.total_episodes} is rounded up to {rounded}: {updates} updates of {batch}"
        )
    for notice in notices if PartialState().is_main_process else []:
        print(notice, flush=True)
    return args, prompts


def _check_parts(parts: Mapping[str, Any], scores_by_function: bool) -> None:
    """Refuse constructor arguments that are missing or that this trainer would not use."""
    for name in ("train_dataset", "value_model"):
        if parts[name] is None:
            raise UserError(f"PPOTrainer: {name} is None; it is required (a value model may be a second reward model)")
    if parts["reward_model"] is parts["value_model"]:
        raise UserError(
            "PPOTrainer: reward_model and value_model are one model, which training changes; pass two copies"
        )
    if parts["reward_model"] is None and not scores_by_function:
        raise UserError("PPOTrainer: reward_model is None; pass a reward model, or a score_function")
    collator, samples = parts["data_collator"], parts["eval_dataset"]
    if collator is not None and type(collator) is not DataCollatorWithPadding:
        raise UserError(
            f"PPOTrainer: data_collator is a {type(collator).__name__}, which would not be called: prompts are read "
            "from input_ids without padding; apply it to the rows with train_dataset.map, and leave data_collator out"
        )
    if samples is not None and scores_by_function:
        raise UserError(
            "PPOTrainer: eval_dataset with score_function: TRL scores samples by the reward model; leave one of the "
            "two out (watch measures the policy on held-out prompts with any score)"
        )
    for name in ("train_dataset", "eval_dataset"):
        if parts[name] is not None and not (isinstance(parts[name], Dataset) and "input_ids" in parts[name].features):
            raise UserError(
                f"PPOTrainer: {name} has columns {getattr(parts[name], 'column_names', None)}; expected a Dataset with "
                "input_ids: dataset.map(lambda row: {'input_ids': tokenizer(row['prompt'])['input_ids']})"
            )


def _check_sharding(args: PPOConfig, parts: Mapping[str, Any], processes: int) -> None:
    if processes == 1:
        raise UserError("ppo.args.fsdp: True: one process trains, which has nothing to share; start several")
    if args.fp16:
        raise UserError("ppo.args.fp16: True: its loss scale does not go with fsdp; set bf16=True")
    if parts["eval_dataset"] is not None:
        raise UserError(
            "PPOTrainer: eval_dataset with fsdp: TRL would draw samples from weights that the processes share; "
            "leave one of the two out (watch measures the policy on held-out prompts)"
        )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.padding_side != "left":
        raise UserError(
            f"ppo: the tokenizer pads on the {tokenizer.padding_side}, so answers would follow padding; set "
            "padding_side='left' (tokens.padding_copy)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("ppo: the tokenizer has no EOS token, which ends answers; set tokenizer.eos_token")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"ppo: the tokenizer pads with {tokenizer.pad_token!r}, its EOS is {tokenizer.eos_token!r}; with EOS as "
            "padding PPO never trains the EOS; give it gpt2_rlhf.models.tokens.padding_copy(tokenizer, 'left')"
        )


def _stop_at_eos(args: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Set `stop_token` to "eos", the only token that ends answers here; return lines to print if that changes it."""
    given = args.stop_token_id
    if given is not None and given != tokenizer.eos_token_id:
        raise UserError(
            f"ppo.args.stop_token_id: {given} is not the tokenizer's EOS ({tokenizer.eos_token_id}), which ends "
            "answers; set tokenizer.eos_token to the token that should end them"
        )
    was_unset = args.stop_token is None and given is None
    args.stop_token, args.stop_token_id = "eos", None
    return ["ppo: stop_token is not set; answers end at EOS, as with stop_token='eos'"] if was_unset else []
