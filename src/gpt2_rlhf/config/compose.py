"""Compose conf/ and the overrides into one checked `Settings`, so that a typo for PPO fails before SFT starts.

Hydra composes, plain Python builds. The schema has our own fields from settings.py and, under each stage's `args`,
every field of TRL's config dataclass (trl_fields.py), all without defaults: what is set is what conf/ and the user
set. So any TRL argument can be overridden without `+`, and a misspelt one or a wrong type is refused.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2_rlhf.config import trl_fields
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings

CONF_DIR = Path(__file__).parent / "conf"
STAGES_WITH_ARGS = ("sft", "reward", "ppo")

_OURS = "the pipeline sets it"
_HUB = "publishing is its own step; set publish.repo_id=<user/name>"
_LENGTHS = "lengths are cut when the data is prepared; set data.max_prompt_tokens and data.max_answer_tokens"
_TOKENS = "the token contract fixes it for all stages"
_COMPUTED = "TRL computes it from the batch arguments"

# Arguments that TRL has and a user must not set here, with the reason that the refusal gives.
REFUSED: dict[str, dict[str, str]] = {
    "": {
        "output_dir": "stages are named by content below output_dir=<folder>",
        "seed": "set seed=<number>, which every stage uses",
        "data_seed": "set seed=<number>, which every stage uses",
        "resume_from_checkpoint": "an unfinished stage resumes by itself",
        "ignore_data_skip": "resuming must not change the result",
        "disable_tqdm": "progress is one line of the pipeline's own",
        "remove_unused_columns": _OURS,
        "label_names": _OURS,
        "do_train": _OURS,
        "do_eval": _OURS,
        "do_predict": _OURS,
        "load_best_model_at_end": "the weights handed on are those after the last step",
        "push_to_hub": _HUB,
        "hub_model_id": _HUB,
        "hub_strategy": _HUB,
        "hub_token": _HUB,
        "hub_private_repo": _HUB,
        "hub_always_push": _HUB,
        "hub_revision": _HUB,
    },
    "sft": {
        "trust_remote_code": "code from a model's repository is never run",
        "max_length": _LENGTHS,
        "truncation_mode": _LENGTHS,
        "dataset_text_field": _OURS,
        "dataset_kwargs": _OURS,
        "completion_only_loss": "the loss is on the answer only",
        "assistant_only_loss": "the loss is on the answer only",
        "model_init_kwargs": "set model.name and model.revision",
        "chat_template_path": _TOKENS,
        "eos_token": _TOKENS,
        "pad_token": _TOKENS,
    },
    "reward": {
        "trust_remote_code": "code from a model's repository is never run",
        "max_length": _LENGTHS,
        "model_init_kwargs": "set model.name and model.revision",
        "chat_template_path": _TOKENS,
        "eos_token": _TOKENS,
        "pad_token": _TOKENS,
    },
    "ppo": {
        "sft_model_path": "PPO starts from this run's SFT model",
        "reward_model_path": "PPO uses this run's reward model",
        "stop_token": _TOKENS,
        "stop_token_id": _TOKENS,
        "num_sample_generations": "it would change the random state and so the result",
        "world_size": _COMPUTED,
        "num_total_batches": _COMPUTED,
        "micro_batch_size": _COMPUTED,
        "local_batch_size": _COMPUTED,
        "batch_size": _COMPUTED,
        "local_mini_batch_size": _COMPUTED,
        "mini_batch_size": _COMPUTED,
        "model_adapter_name": _OURS,
        "ref_adapter_name": _OURS,
    },
}

# PPOConfig inherits all of TrainingArguments; these are the arguments that our PPO does something with.
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


@dataclass(frozen=True)
class Composed:
    """What one command asked for: the checked settings, the overrides as typed, every value that is set as YAML."""

    settings: Settings
    overrides: tuple[str, ...]  # ordered by key
    yaml: str


def load(overrides: Sequence[str]) -> Composed:
    """Compose conf/ and overrides such as `ppo.args.kl_coef=0.2`, and check the result.

    Raises:
        UserError: an override or a file in conf/ has a misspelt key, a wrong type, a value that is not allowed or
            a field that the pipeline sets itself.
    """
    cfg = _compose(overrides)
    _check_args(cfg)
    values = _set_values(OmegaConf.to_container(cfg))
    missing = next(_missing(Settings, values), None)
    if missing is not None:
        raise UserError(f"{missing}: no value is set; set it with {missing}=<value>")
    ordered = sorted(overrides, key=lambda text: text.partition("=")[0])
    return Composed(_build(Settings, values), tuple(ordered), OmegaConf.to_yaml(values))


def groups() -> dict[str, list[str]]:
    """The config groups and their options, as `--help` lists them."""
    return {
        folder.name: sorted(f.stem for f in folder.glob("*.yaml"))
        for folder in sorted(CONF_DIR.iterdir())
        if folder.is_dir()
    }


def _compose(overrides: Sequence[str]) -> DictConfig:
    _check_names(overrides)
    ConfigStore.instance().store(name="schema", node=_schema(Settings, ""))
    try:
        with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=list(overrides))
        OmegaConf.resolve(cfg)
    except HydraException as error:  # what Hydra wraps says more than its wrapper
        raise UserError(_one_line(error.__cause__ or error)) from error
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    return cfg


def _check_names(overrides: Sequence[str]) -> None:
    """Refuse an override of something that does not exist, also behind `+`, which Hydra would let through."""
    leaves = list(_leaves(Settings, ""))
    options = groups()
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UserError(f"{text}: not an override; wanted key=value, strings with = or , in quotes") from error
        key, value = override.key_or_group, override.value()
        if key.split("/")[0].split(".")[0] == "hydra":
            continue
        if key in options and isinstance(value, str) and value not in options[key]:
            raise UserError(f"{key}: there is no {value!r}; {_did_you_mean(value, options[key])}")
        if key not in options and not any(f"{leaf}.".startswith(f"{key}.") for leaf in leaves):
            inside = next((leaf for leaf in leaves if key.startswith(f"{leaf}.")), None)
            if inside is None or get_args(_leaves(Settings, "")[inside]) == ():
                hint = _did_you_mean(key, [*leaves, *options])
                raise UserError(f"{key}: there is no such setting; {hint}")


def _did_you_mean(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"wanted one of {', '.join(known)}" if len(known) < 20 else "`make config` shows what is set"


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    key = error.full_key if isinstance(error, OmegaConfBaseException) else None
    return f"{key}: {text[0]}" if key else " ".join(text)


def _schema(cls: type, path: str) -> type:
    """An unfrozen twin of a settings class for OmegaConf, every field typed and without a value."""
    twin: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(cls).items():
        if name == "args":
            known = [(n, f.type, MISSING) for n, f in trl_fields.fields(path).items()]
            node = dataclasses.make_dataclass(f"{path}_args", known)
        elif dataclasses.is_dataclass(kind):
            node = _schema(kind, name)  # type: ignore[arg-type]
        else:
            twin.append((name, kind, MISSING))
            continue
        twin.append((name, node, dataclasses.field(default_factory=node)))
    return dataclasses.make_dataclass(cls.__name__, twin)


def _check_args(cfg: DictConfig) -> None:
    for stage in STAGES_WITH_ARGS:
        for name, field in trl_fields.fields(stage).items():
            if OmegaConf.is_missing(cfg[stage].args, name):
                continue
            value, key = cfg[stage].args[name], f"{stage}.args.{name}"
            reason = REFUSED[stage].get(name) or REFUSED[""].get(name)
            if reason is not None:
                raise UserError(f"{key}: cannot be set here: {reason}")
            if stage == "ppo" and name not in PPO_USES:
                raise UserError(f"{key}: PPO does nothing with it; leave it out")
            if field.choices is not None and value is not None and value not in field.choices:
                hint = _did_you_mean(str(value), field.choices)
                raise UserError(f"{key}: {value!r} is not a value TRL knows; {hint}")


def _leaves(cls: type, prefix: str) -> dict[str, Any]:
    """Every setting by its dotted name, with its type."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        if name == "args":
            stage = prefix.rstrip(".")
            found |= {f"{prefix}args.{n}": f.type for n, f in trl_fields.fields(stage).items()}
        elif dataclasses.is_dataclass(kind):
            found |= _leaves(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[f"{prefix}{name}"] = kind
    return found


def _set_values(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(k): _set_values(v) for k, v in node.items() if not (isinstance(v, str) and v == MISSING)}
    return node


def _missing(cls: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in values:
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(hints[field.name]):
            yield from _missing(hints[field.name], values[field.name], f"{prefix}{field.name}.")


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    return cls(
        **{
            f.name: _build(hints[f.name], values[f.name]) if dataclasses.is_dataclass(hints[f.name]) else values[f.name]
            for f in dataclasses.fields(cls)
        }
    )
