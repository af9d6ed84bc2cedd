"""Which of TRL's arguments a user may set, and with which values.

TRL's trainers take more arguments than the pipeline can leave open: some it sets itself, and our PPO does nothing with
most of what PPOConfig inherits from TrainingArguments. Setting one of these is an error, since it would have no effect.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

from gpt2_rlhf.config import trl_fields
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.suggestions import did_you_mean

_NAMES_BY_REASON = {
    "the pipeline sets it": (
        "remove_unused_columns", "label_names", "do_train", "do_eval", "do_predict", "dataset_text_field",
        "dataset_kwargs", "model_adapter_name", "ref_adapter_name",
    ),
    "stages are named by content below output_dir=<folder>": ("output_dir",),
    "set seed=<number>, which every stage uses": ("seed", "data_seed"),
    "an unfinished stage resumes by itself": ("resume_from_checkpoint",),
    "a resumed stage must give the same result": ("ignore_data_skip", "save_only_model"),
    "the pipeline prints a progress line of its own": ("disable_tqdm",),
    "the next stage gets the weights after the last step": ("load_best_model_at_end",),
    "publishing is a step of its own; set publish.repo_id=<user/name>": (
        "push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push",
        "hub_revision",
    ),
    "code from a model's repository is never run": ("trust_remote_code",),
    "set model.name and model.revision": ("model_init_kwargs",),
    "the data stage limits lengths; set data.max_prompt_tokens and data.max_answer_tokens": (
        "max_length", "truncation_mode",
    ),
    "the pipeline trains without padding by itself, and keeps the rows apart": (
        "packing", "packing_strategy", "padding_free", "eval_packing",
    ),
    "the pipeline trains with the model's own forward pass": ("use_liger_kernel", "liger_kernel_config"),
    "set launch.processes=<number>, or launch=fsdp to shard the model over them": ("fsdp", "fsdp_config", "deepspeed"),
    "no override can give the object that it needs": ("parallelism_config",),
    "the loss is on the answer only": ("completion_only_loss", "assistant_only_loss"),
    "all stages share one tokenizer and its EOS": (
        "chat_template_path", "eos_token", "pad_token", "stop_token", "stop_token_id",
    ),
    "PPO starts from this run's SFT model": ("sft_model_path",),
    "PPO uses this run's reward model": ("reward_model_path",),
    "samples drawn while training would change the random state and so the result": ("num_sample_generations",),
    "the order of the prompts depends on the seed alone": ("shuffle_dataset",),
    "there is one reward": ("reward_weights",),
    "the pipeline samples by itself, from the model's whole distribution": (
        "use_vllm", "use_transformers_continuous_batching", "transformers_continuous_batching_config",
        "use_transformers_paged", "generation_kwargs", "cache_implementation", "top_p", "top_k", "min_p",
        "repetition_penalty", "chat_template_kwargs", "ds3_gather_for_generation",
    ),
    "TRL computes it from the batch arguments": (
        "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size",
        "local_mini_batch_size", "mini_batch_size",
    ),
}  # fmt: skip

REFUSED = {name: reason for reason, names in _NAMES_BY_REASON.items() for name in names}

# Values that TRL knows, but that a stage fails on late or does nothing with: stage, argument, value, reason.
_REFUSED_VALUES = (
    ("*", "save_strategy", "best", "checkpoints are for resuming, which needs the newest; set no, steps or epoch"),
    ("*", "label_smoothing_factor", "*", "TRL's losses have no label smoothing; leave it out"),
    ("reward", "train_sampling_strategy", "group_by_length", "a pair has two lengths; set another"),
    ("rloo", "eval_strategy", "[!n]*", "the evaluation of the run measures the policy; leave it out"),
    ("rloo", "max_steps", "*", "the episodes decide; set rloo.episodes=<number>"),
    ("rloo", "num_train_epochs", "*", "the episodes decide; set rloo.episodes=<number>"),
    ("rloo", "vllm_*", "*", "the pipeline samples by itself; leave it out"),
    ("ppo", "lr_scheduler_type", "reduce_lr_on_plateau", "PPO has no evaluation loss to follow; set another"),
    ("ppo", "optim", "*lomo", "it updates in the backward pass, which PPO does not allow for; set another"),
    ("ppo", "optim", "*_layerwise", "it updates in the backward pass, which PPO does not allow for; set another"),
    ("ppo", "optim", "schedule_free_*", "PPO does not switch its modes for training and generation; set another"),
)

PPO_USES = frozenset(
    {
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches", "num_ppo_epochs",
        "local_rollout_forward_batch_size", "total_episodes", "num_train_epochs", "max_steps",
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm",
        "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "response_length", "temperature", "missing_eos_penalty", "whiten_rewards", "kl_coef", "kl_estimator",
        "cliprange", "vf_coef", "cliprange_value", "gamma", "lam",
        "bf16", "fp16", "activation_checkpointing", "use_cpu", "ddp_backend", "ddp_timeout",
        "logging_strategy", "logging_steps", "logging_first_step", "report_to", "run_name", "project",
        "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        "save_strategy", "save_steps", "save_total_limit", "eval_strategy", "eval_steps",
    }
)  # fmt: skip


def by_use(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the settings of this project and the arguments that PPO uses too; then the others that may be set."""
    arguments = {key: key.partition(".args.")[2] for key in keys}
    common = [key for key, name in arguments.items() if name == "" or name in PPO_USES]
    others = (key for key, name in arguments.items() if name not in REFUSED and not key.startswith("ppo."))
    return common, [key for key in others if key not in common]


def check(stage: str, args: Mapping[str, Any]) -> None:
    """Raise a UserError for the first argument that must not be set in a stage, or whose value TRL does not know."""
    for name, value in args.items():
        key, choices = f"{stage}.args.{name}", trl_fields.fields(stage)[name].choices
        if name in REFUSED:
            raise UserError(f"{key}: cannot be set here: {REFUSED[name]}")
        if stage == "ppo" and name not in PPO_USES:
            raise UserError(f"{key}: PPO does nothing with it; leave it out")
        if name == "loss_type" and stage in ("sft", "dpo"):  # TRL lists no choices, and refuses others once it trains
            choices = trl_fields.loss_types(stage)
        given = [] if value is None else value if isinstance(value, list) else [value]
        if choices is not None and (wrong := [one for one in given if one not in choices]):
            raise UserError(f"{key}: {wrong[0]!r} is not a value TRL knows; {did_you_mean(str(wrong[0]), choices)}")
        for stages, argument, pattern, reason in _REFUSED_VALUES:
            if fnmatch(name, argument) and fnmatch(stage, stages) and fnmatch(str(value), pattern):
                raise UserError(f"{key}: {value}: {reason}")
    if args.get("dataloader_persistent_workers") and not args.get("dataloader_num_workers"):
        raise UserError(
            f"{stage}.args.dataloader_persistent_workers: true, but there are no workers; set "
            f"{stage}.args.dataloader_num_workers above 0"
        )
