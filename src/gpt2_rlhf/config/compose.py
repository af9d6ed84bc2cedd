"""Compose conf/ and the overrides into one checked `Settings`, so that a typo for PPO fails before SFT starts.

Hydra composes, plain Python builds. The schema has our own fields from settings.py and, under each stage's `args`,
every field of TRL's config dataclass (trl_fields.py). It holds types and no defaults: a value is set by conf/ or by the
user. So every TRL argument can be overridden without `+`, and a misspelt name or a wrong type is refused.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2_rlhf.config import trl_arguments, trl_fields
from gpt2_rlhf.config.errors import UserError, did_you_mean
from gpt2_rlhf.config.settings import Settings

CONF_DIR = Path(__file__).parent / "conf"


@dataclass(frozen=True)
class Composed:
    """The configuration of one command: checked settings, the overrides as typed, every value that is set as YAML."""

    settings: Settings
    overrides: tuple[str, ...]  # ordered by key
    yaml: str


def load(overrides: Sequence[str]) -> Composed:
    """Compose conf/ and overrides such as `ppo.args.kl_coef=0.2`, and check the result.

    Raises:
        UserError: an override or a file in conf/ has a misspelt key, a wrong type, a value that is not allowed or
            a field that the pipeline sets itself.
    """
    kinds = _kinds(_schema(Settings))
    parsed = [_with_quotes(override, kinds) for override in overrides]
    typed = _check_names(parsed, kinds)
    values = _without_missing(OmegaConf.to_container(_compose([*_groups_of_names(typed), *parsed])))
    for stage in trl_fields.STAGES:
        trl_arguments.check(stage, values[stage]["args"])
    ordered = sorted(overrides, key=lambda text: text.partition("=")[0])
    return Composed(_build(Settings, values), tuple(ordered), OmegaConf.to_yaml(values))


def read(yaml: str, now: Settings) -> Settings:
    """Return the settings of an earlier `load` from its YAML, but those that no stage reads as they are now.

    Raises:
        UserError: it lacks a setting.
    """
    values: Any = OmegaConf.to_container(OmegaConf.create(yaml))
    return _build(Settings, values | {name: dataclasses.asdict(getattr(now, name)) for name in ("chat", "publish")})


def groups() -> dict[str, list[str]]:
    """Return the config groups with their options, as `--help` lists them."""
    folders = sorted(folder for folder in CONF_DIR.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _with_quotes(override: str, kinds: Mapping[str, Any]) -> str:
    """Return the override of a text, such as a path, with the quotes that Hydra needs to take it as it was typed.

    Hydra reads only some characters of a text without quotes: none with an accent, no bracket, no apostrophe. And it
    would read `1e5` as a number and `a,b` as a sweep. A text that the user put in quotes stays as it is.
    """
    key, equals, value = override.partition("=")
    if not equals or kinds.get(key) not in (str, str | None):
        return override
    try:
        if isinstance(OverridesParser.create().parse_override(override).value(), str | None):
            return override
    except HydraException:
        pass
    # in Hydra's quotes, a backslash stands for itself unless a quote follows it
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", r"\'")
    return f"{key}='{escaped}'"


def _check_names(overrides: Sequence[str], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse an override of a setting that does not exist, which Hydra would accept after a `+`; return the values."""
    options = groups()
    typed: dict[str, Any] = {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UserError(f"{text}: not an override; expected key=value, strings with = or , in quotes") from error
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise UserError(
                f"{text}: several values; expected one (a decimal number has a point: 0.2), or `make sweep` for all"
            )
        typed[key] = value
        if key in options:
            if isinstance(value, str) and value not in options[key]:
                raise UserError(f"{key}: there is no {value!r}; {did_you_mean(value, options[key])}")
        elif not _exists(key, kinds) and key.split("/")[0].split(".")[0] != "hydra":
            raise UserError(f"{key}: there is no such setting; {did_you_mean(key, [*kinds, *options])}")
    return typed


def _groups_of_names(typed: Mapping[str, Any]) -> list[str]:
    """Return the group to choose for a model or data set that is named without its group.

    The default groups are the bundled ones, which bring values of their own for the stages. Those must not apply to
    another model or data set.
    """
    return [
        group
        for group, keys in (("model=own", ("model.name",)), ("data=hh_rlhf", ("data.path", "data.name")))
        if group.partition("=")[0] not in typed and any(typed.get(key) not in (None, "embedded") for key in keys)
    ]


def _exists(key: str, kinds: Mapping[str, Any]) -> bool:
    """Return whether the key is a setting, a node with settings below it, or an entry of a setting that is a dict."""
    return any(
        f"{name}.".startswith(f"{key}.") or (key.startswith(f"{name}.") and get_args(kind))
        for name, kind in kinds.items()
    )


def _compose(overrides: Sequence[str]) -> DictConfig:
    ConfigStore.instance().store(name="schema", node=_schema(Settings))
    try:
        with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=list(overrides))
        OmegaConf.resolve(cfg)
    except HydraException as error:
        raise UserError(_one_line(error.__cause__ or error)) from error  # the cause says more than Hydra's wrapper
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from error
    return cfg


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    key = error.full_key if isinstance(error, OmegaConfBaseException) else None
    return f"{key}: {lines[0]}" if key else " ".join(lines)


@cache
def _schema(cls: type, stage: str = "") -> type:
    """Return a copy of a settings class for OmegaConf: not frozen, every field typed, none with a value.

    stage: whose TRL arguments a field `args` stands for.
    """
    nodes: list[tuple[str, Any, Any]] = []
    for name, kind in get_type_hints(cls).items():
        if name == "args":
            arguments = [(argument, field.type, MISSING) for argument, field in trl_fields.fields(stage).items()]
            kind = dataclasses.make_dataclass(f"{stage}_args", arguments)
        elif _is_node(kind):
            kind = _schema(kind, name)
        nodes.append((name, kind, dataclasses.field(default_factory=kind) if _is_node(kind) else MISSING))
    return dataclasses.make_dataclass(cls.__name__, nodes)


def _is_node(kind: Any) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _kinds(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of every setting by its dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if _is_node(field.type):
            found |= _kinds(field.type, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = field.type
    return found


def _without_missing(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _without_missing(value) for key, value in node.items() if value != MISSING}
    return node


def _build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Build a settings class, and those inside it, from nested values.

    Raises:
        UserError: a field has no value.
    """
    built: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        key = f"{prefix}{name}"
        if name not in values:
            raise UserError(f"{key}: no value is set; set it with {key}=<value>")
        built[name] = _build(kind, values[name], f"{key}.") if _is_node(kind) else values[name]
    return cls(**built)
