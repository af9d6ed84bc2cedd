"""Refuse values that no run could use, before anything is trained.

Neither this module nor what it imports needs torch, so that a wrong value shows within a second. A stage built alone
is not refused for the settings of later stages.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.methods import LABELS
from gpt2_rlhf.config.settings import TABLES, Settings, flat
from gpt2_rlhf.config.trl_fields import STAGES

_OF_ALL_STAGES = ("evaluate.batch_size", "evaluate.pairs")  # they measure with these


def _in_args(*names: str) -> tuple[str, ...]:
    """Return the settings of these names of every stage that trains."""
    return tuple(f"{stage}.args.{name}" for stage in STAGES for name in names)


_ABOVE_0 = (
    "data.train_pairs", "data.test_pairs", "data.max_prompt_tokens", "data.max_answer_tokens",
    *_in_args("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    "ppo.args.num_ppo_epochs", "ppo.args.num_mini_batches", "ppo.args.total_episodes",
    "ppo.args.response_length", "ppo.args.temperature", "ppo.args.eval_steps",
    "ppo.reward.clip", "ppo.kl.target_nats", "ppo.kl.horizon_episodes",
    "ppo.heldout.prompts", "ppo.guard.max_kl_nats",
    "rloo.args.num_generations", "rloo.args.steps_per_generation", "rloo.args.temperature",
    "rloo.args.max_completion_length", "rloo.args.num_iterations", "rloo.episodes", "dpo.args.beta",
    "evaluate.prompts", "evaluate.pairs", "evaluate.batch_size",
    "evaluate.max_new_tokens", "evaluate.temperature", "chat.max_new_tokens", "chat.temperature",
    "launch.processes", "launch.threads", "sweep.parallel",
    *_in_args("save_steps", "save_total_limit", "logging_steps", "per_device_eval_batch_size"),
)  # fmt: skip
_AT_LEAST_0 = (
    "ppo.args.kl_coef", "ppo.args.missing_eos_penalty", "rloo.args.beta", "rloo.missing_eos_penalty",
    *_in_args("weight_decay", "max_grad_norm", "adam_epsilon", "dataloader_num_workers"),
)  # fmt: skip
_RANKS = tuple(f"{stage}.peft.r" for stage in STAGES)
_SEEDS = ("seed", "data.seed", "evaluate.seed", "chat.seed")

# What is expected, the check, the settings that it holds for. A value that is null or not set is not checked.
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("a number above 0", lambda number: number > 0, _ABOVE_0),
    ("a number of 0 or more", lambda number: number >= 0, _AT_LEAST_0),
    # transformers takes all others for -1
    ("a number above 0, or -1 to count epochs", lambda steps: steps == -1 or steps > 0, _in_args("max_steps")),
    ("a number above 1", lambda number: number > 1, ("ppo.guard.max_length_ratio",)),
    ("a number from 0 to 1", lambda number: 0 <= number <= 1, ("ppo.guard.min_eos_rate", "ppo.guard.min_distinct_2")),
    ("a number of 0 or more and below 1", lambda beta: 0 <= beta < 1, _in_args("adam_beta1", "adam_beta2")),
    ("a whole number from 0 to 4294967295", lambda seed: 0 <= seed < 2**32, _SEEDS),
    # as many answers to a prompt are held in memory
    ("a whole number from 1 to 1024", lambda count: 1 <= count <= 1024, ("evaluate.best_of", "chat.best_of")),
    ("a year such as 2026", lambda year: 1000 <= year <= 9999, ("card.year",)),
    ("a name, or null for no citation", lambda author: author.strip() != "", ("card.author",)),
    ("a license from the Hub's list, such as mit", lambda license: license.strip() != "", ("card.license",)),
    ("0 to train all weights, or a LoRA rank such as 8", lambda rank: rank >= 0, _RANKS),
    (
        "different whole numbers from 0 to 4294967295, or null",
        lambda seeds: len(seeds) > 0 and len(set(seeds)) == len(seeds) and 0 <= min(seeds) <= max(seeds) < 2**32,
        ("ppo.seeds",),
    ),
    (
        "shares for sft, reward, judge and ppo, above 0 (judge: 0 or more), that sum to at most 1",
        lambda shares: (
            sorted(shares) == sorted(TABLES)
            and all(share > 0 or (name, share) == ("judge", 0) for name, share in shares.items())
            and sum(shares.values()) <= 1 + 1e-9
        ),
        ("data.shares",),
    ),
    (
        "reward, judge, utility or null",
        lambda by: by in ("reward", "judge", "utility"),
        ("ppo.heldout.best_by", "sweep.best_by"),
    ),
    ("chat, for the model's own chat template, or null", lambda name: name == "chat", ("data.template",)),
    ("ppo, rloo or dpo", lambda method: method in LABELS, ("method",)),
    ("a name or a path", lambda name: name != "", ("output_dir", "model.name", "data.name", "data.path")),
    ("last or best", lambda policy: policy in ("last", "best"), ("ppo.heldout.hand_on",)),
    ("static, compiled or null", lambda cache: cache in ("static", "compiled"), ("ppo.rollout_cache",)),
)


def check(settings: Settings, last: str = "evaluate") -> None:
    """Raise a UserError for the first value of the stages up to `last` that is out of range or contradicts another."""
    if settings.method in LABELS and last in LABELS and last != settings.method:
        raise UserError(f"method: {settings.method}, with which no {last} stage is built; expected method={last}")
    later = _later(last, settings)
    if last == "judge" and not settings.data.has_judge:
        raise UserError("judge: these settings have none; expected data.disjoint=true and a data.shares.judge above 0")
    check_ranges(settings, lambda key: key.split(".")[0] not in later or key in _OF_ALL_STAGES)
    for fault in _launch_faults(settings, later):
        raise UserError(fault)
    for fault in _contradictions(settings) if "ppo" not in later else ():
        raise UserError(fault)


def check_overrides(overrides: Sequence[str], method: str) -> None:
    """Raise a UserError for a setting of another method, which has no effect; all methods read some of `ppo`."""
    for key in (one.partition("=")[0] for one in overrides):
        if (section := key.lstrip("+~").partition(".")[0]) in LABELS and section not in ("ppo", method):
            raise UserError(f"{key}: method={method} does not read it; set method={section}, or leave it out")


def check_ranges(settings: Settings, is_used: Callable[[str], bool]) -> None:
    """Raise a UserError for the first of the settings that are used whose value is out of range or infinite."""
    values = asdict(settings)
    for key, value in flat(values):
        if is_used(key) and isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}: {value}; expected a finite number")
    for expected, is_valid, keys in RANGES:
        for key in filter(is_used, keys):
            *parents, name = key.split(".")
            value = reduce(getitem, parents, values).get(name)
            if value is not None and not is_valid(value):
                raise UserError(f"{key}: {'no value' if value == '' else value}; expected {expected}")


def _later(last: str, settings: Settings) -> tuple[str, ...]:
    """Return the settings that the stages up to `last` do not read: those of later stages and of other methods."""
    stages = ("data", "sft", "reward", "judge", settings.method, "evaluate")
    shared = ("ppo",) if settings.method == "rloo" else ()  # RLOO has PPO's reward and prompts
    others = [name for name in LABELS if name not in (settings.method, *shared)]
    return (*others, *stages[stages.index(last) + 1 :])


def _launch_faults(settings: Settings, later: Sequence[str]) -> Iterator[str]:
    """Find what launch, the launcher's own config file or its environment sets that no stage could train with."""
    launch = settings.launch
    if launch.sharded:
        yield from _sharding_faults(settings, later)
    key, engine = f"launch.accelerate_config: {launch.accelerate_config}", None
    if launch.accelerate_config is not None:
        try:
            engine = yaml.safe_load(Path(launch.accelerate_config).read_text(encoding="utf-8"))["distributed_type"]
        except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
            yield (
                f"{key}: cannot be read ({type(error).__name__}); expected a file that `accelerate config "
                "--config_file FILE` writes"
            )
        if launch.processes == 1:
            yield f"{key}: not used by one process; set launch.processes, or leave it out"
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            key, engine = "accelerate launch", name
    if engine == "FSDP" and "sft" not in later:
        yield f"{key}: FSDP: its models could not be saved; choose MULTI_GPU, and shard with launch.sharded=true"
    if engine in ("DEEPSPEED", "MEGATRON_LM") and "ppo" not in later:
        yield f"{key}: {engine}: PPO does not train with it; launch=fsdp trains models that one device does not hold"


def _sharding_faults(settings: Settings, later: Sequence[str]) -> Iterator[str]:
    if os.environ.get("WORLD_SIZE", str(settings.launch.processes)) == "1":
        yield "launch.sharded: true, but one process trains, which has nothing to share; set launch.processes=2 or more"
    if settings.method != "ppo" and settings.method not in later:
        label = LABELS[settings.method]
        yield f"launch.sharded: true, but {label} trains whole models; set method=ppo, or launch=torchrun"
    for name, stage in settings.training.items():
        if name not in later and stage.args.get("fp16"):
            yield f"{name}.args.fp16: true: its loss scale does not go with launch.sharded; set {name}.args.bf16=true"


def _contradictions(settings: Settings) -> Iterator[str]:
    ppo, heldout = settings.ppo, settings.ppo.heldout
    if ppo.reward.function is not None and ppo.reward.normalise:
        yield (
            "ppo.reward.normalise: it takes the mean and spread of the reward model's scores, but ppo.reward.function "
            "gives other scores; set it to false"
        )
    if ppo.args["eval_strategy"] == "no" and heldout.hand_on == "best":
        yield "ppo.heldout.hand_on: best, but with ppo.args.eval_strategy=no nothing is measured; change either"
    if heldout.best_by == "judge" and not settings.data.has_judge:
        yield "ppo.heldout.best_by: judge, but no judge is trained; set data.shares.judge above 0"
    if heldout.best_by == "utility" and settings.data.utility is None:
        yield "ppo.heldout.best_by: utility, but it is unknown for these data; set data.utility"


def check_lengths(settings: Settings, positions: int, last: str = "evaluate") -> None:
    """Raise a UserError if a prompt and an answer of a stage up to `last` may have more tokens than these positions."""
    prompt_tokens = settings.data.max_prompt_tokens
    answer_limits = {  # each with EOS, after which reward models score an answer, also one that was cut
        "data.max_answer_tokens": settings.data.max_answer_tokens + 1,
        "ppo.args.response_length": settings.ppo.args["response_length"] + 1,
        "rloo.args.max_completion_length": settings.rloo.args["max_completion_length"] + 1,
        "evaluate.max_new_tokens": settings.evaluate.max_new_tokens + 1,
    }
    for key, tokens in answer_limits.items():
        if key.split(".")[0] not in _later(last, settings) and prompt_tokens + tokens > positions:
            raise UserError(
                f"{key}: {prompt_tokens} prompt tokens (data.max_prompt_tokens) and {tokens} answer tokens make "
                f"{prompt_tokens + tokens}, but the model has {positions} positions; lower either"
            )
