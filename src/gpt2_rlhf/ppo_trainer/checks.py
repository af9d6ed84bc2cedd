"""Refuse what PPO cannot train with: arguments, tokenizers and prompts on which TRL's hangs, crashes or goes wrong."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.experimental.ppo import PPOConfig

from gpt2_rlhf.config.errors import UserError


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
    if args.activation_checkpointing or args.gradient_checkpointing:
        raise UserError("ppo.args.activation_checkpointing: PPO does nothing with it; set it to false")
    for name in ("logging_strategy", "save_strategy", "eval_strategy"):
        if getattr(args, name) not in ("no", "steps"):
            raise UserError(f"ppo.args.{name}: {getattr(args, name)}: PPO counts updates; wanted steps or no")


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
