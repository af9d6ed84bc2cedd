"""Compose conf/ and the overrides into one checked `Settings`, so that a typo for PPO fails before SFT starts.

Hydra composes the groups, OmegaConf sets the values, plain Python builds. The schema has our own fields from
settings.py and, under each stage's `args`, every field of TRL's config dataclass (trl_fields.py). It holds types and no
defaults: a value is set by conf/ or by the user. So every TRL argument can be overridden without `+`, and a misspelt
name or a wrong type is refused.
"""

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from gpt2_rlhf.config import suggestions, trl_arguments, trl_fields
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Settings

CONF_DIR = Path(__file__).parent / "conf"

Options = Mapping[str, Sequence[str]]  # of each config group


@dataclass(frozen=True)
class Composed:
    """The configuration of one command: checked settings, the overrides as typed, every value that is set."""

    settings: Settings
    overrides: tuple[str, ...]  # ordered by key, so that a run is described alike in whatever order they were typed
    values: Mapping[str, Any]


def load(overrides: Sequence[str]) -> Composed:
    """Compose conf/ and overrides such as `ppo.args.kl_coef=0.2`, and check the result.

    Raises:
        UserError: an override or a file in conf/ has a misspelt key, a wrong type, a value that is not allowed or
            a field that the pipeline sets itself.
    """
    kinds, options = dict(_kinds(_schema(Settings))), groups()
    texts = [_as_hydra_reads_it(override.lstrip("+"), kinds) for override in overrides]  # every setting exists
    cfg = _compose([_parsed(text, kinds, options) for text in texts], kinds, options)
    values = _without_missing(OmegaConf.to_container(cfg))
    for stage in trl_fields.STAGES:
        trl_arguments.check(stage, values[stage].get("args", {}))
    ordered = sorted(overrides, key=lambda text: text.partition("=")[0])
    return Composed(_build(Settings, values), tuple(ordered), values)


def yaml(values: Mapping[str, Any]) -> str:
    """Return the values of a `load` as YAML, for `read`."""
    return OmegaConf.to_yaml(values)


def read(text: str, now: Settings) -> tuple[Settings, Mapping[str, Any]]:
    """Return the settings and the values in a text of `yaml`; settings that no stage reads are as they are now.

    Raises:
        UserError: a setting is missing.
    """
    values: Any = OmegaConf.to_container(OmegaConf.create(text))
    as_now = {name: dataclasses.asdict(getattr(now, name)) for name in ("chat", "publish")}
    return _build(Settings, {**values, **as_now}), values


def groups() -> dict[str, list[str]]:
    """Return the config groups with their options, as `--help` lists them."""
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(CONF_DIR.glob("*/"))}


def _as_hydra_reads_it(override: str, kinds: Mapping[str, Any]) -> str:
    """Return the override of a text with quotes, so that Hydra takes it as it was typed, and 1e4 as a whole number.

    Hydra reads only some characters of a text without quotes: none with an accent, no bracket, no apostrophe. And it
    would read `1e5` as a number and `a,b` as a sweep. A text that the user put in quotes stays as it is.
    """
    key, equals, value = override.partition("=")
    kind = kinds.get(key)
    if not equals or kind not in (str, str | None, int, int | None):
        return override
    try:
        read = OverridesParser.create().parse_override(override).value()
    except HydraException:
        read = ...
    if kind in (int, int | None):
        return f"{key}={read:.0f}" if isinstance(read, float) and read.is_integer() else override
    if isinstance(read, str | None):
        return override
    # in Hydra's quotes, a backslash stands for itself unless a quote follows it
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", r"\'")
    return f"{key}='{escaped}'"


def _parsed(text: str, kinds: Mapping[str, Any], options: Options) -> Override:
    """Return the override as Hydra parses it; refuse one of a setting or option that does not exist."""
    key, equals, given = text.lstrip("~").partition("=")
    if text.startswith("-"):
        raise UserError(f"{text}: there is no such option; settings are key=value")
    if not key or not (equals or text.startswith("~")):
        raise UserError(f"{text or 'empty argument'}: no value; expected key=value, without spaces")
    if key not in options and not _exists(key, kinds):
        common, rare = trl_arguments.by_use(kinds)
        raise UserError(f"{key}: there is no such setting; {suggestions.setting_like(key, [*common, *options], rare)}")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        expected = suggestions.value_of(key, kinds) or "key=value, strings with = or , in quotes"
        raise UserError(f"{key}: {given} cannot be read; expected {expected}") from error
    if override.is_sweep_override():
        raise UserError(
            f"{text}: several values; expected one{_without_comma(key, given, kinds)}, or `make sweep` for all"
        )
    value = override.value()
    chosen = value if isinstance(value, list) else [value]
    if _chooses(override, options) and not override.is_delete() and not all(one in options[key] for one in chosen):
        more = f", or {_INSTEAD[key]}" if key in _INSTEAD else ""
        raise UserError(f"{key}: there is no {given!r}; {suggestions.did_you_mean(given, options[key])}{more}")
    return override


_INSTEAD = {  # what is set where a user gives it as the group's option
    "model": "model.name=<folder or Hub name>",
    "data": "data.path=<file or folder>, or data.name=<Hub dataset>",
    "publish": "publish.repo_id=<user>/<name>",
}


def _without_comma(key: str, given: str, kinds: Mapping[str, Any]) -> str:
    kind = kinds.get(key)
    if kind in (list[int], list[int] | None, list[str], list[str] | None):
        return f" (a list has brackets: [{given}])"
    if kind in (int, int | None):
        return f" (a whole number has no comma: {given.replace(',', '')})"
    return f" (a decimal number has a point: {given.replace(',', '.')})" if re.fullmatch(r"\d+,\d+", given) else ""


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


def _chooses(override: Override, options: Options) -> bool:
    """Return whether the override chooses an option of a group; a mapping gives values to settings of the group."""
    return override.key_or_group in options and not isinstance(override.value(), dict)


def _compose(overrides: Sequence[Override], kinds: Mapping[str, Any], options: Options) -> DictConfig:
    """Return all values; options are chosen and values deleted before the other values are set, in the given order."""
    typed = {one.key_or_group: one.value() for one in overrides}
    first = [one for one in overrides if one.is_delete() or _chooses(one, options)]
    try:
        chosen = [*_groups_of_names(typed), *(str(one.input_line) for one in first)]
        cfg = copy.deepcopy(_compose_groups(CONF_DIR, tuple(chosen)))
        for one in overrides:
            if one not in first:
                _set(cfg, one.key_or_group, one.value(), options)
        OmegaConf.resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error
        raise UserError(_one_line(cause, typed, kinds)) from error  # the cause says more than Hydra's wrapper
    return cfg


def _set(cfg: DictConfig, key: str, value: Any, options: Options) -> None:
    """Set a value as Hydra does: a mapping adds to the one that is there, and replaces null."""

    def is_null(name: str) -> bool:  # a value that cannot be resolved is not: it may be replaced
        return OmegaConf.select(cfg, name, throw_on_resolution_failure=False) is None

    parts = key.split(".")
    for above in (".".join(parts[:end]) for end in range(1, len(parts))):
        if is_null(above):
            others = f", or choose another option of {parts[0]}" if len(options.get(parts[0], ())) > 1 else ""
            raise UserError(f"{key}: {above} has no value; set {above} as a whole{others}")
    OmegaConf.update(cfg, key, value, merge=not is_null(key))


@cache
def _compose_groups(conf_dir: Path, overrides: tuple[str, ...]) -> DictConfig:
    """Compose the files once for each choice of options, since that takes most of the time; callers change a copy."""
    ConfigStore.instance().store(name="schema", node=_schema(Settings))
    with initialize_config_dir(config_dir=str(conf_dir), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _one_line(error: BaseException, typed: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    lines = str(error).strip().splitlines()
    full_key = error.full_key if isinstance(error, OmegaConfBaseException) else None
    if not full_key:
        return " ".join(lines)
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        return f"{full_key}: there is no such setting; {suggestions.did_you_mean(full_key, list(error.parent_node))}"
    key = full_key.partition("[")[0]
    if isinstance(error, ValidationError) and key in typed and (expected := suggestions.value_of(key, kinds)):
        value = typed[key]
        given = {"None": "null", "True": "true", "False": "false"}.get(str(value), value)
        return f"{key}: {given if given != '' else 'no value'}; expected {expected}"
    return f"{full_key}: {lines[0]}"


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


def _kinds(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name of every setting with its type."""
    for field in dataclasses.fields(schema):
        if _is_node(field.type):
            yield from _kinds(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.type


def _without_missing(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _without_missing(value) for key, value in node.items() if value != MISSING}
    return node


def _build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Build a settings class, and those inside it, from nested values, of which none may be missing."""
    built: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        key = f"{prefix}{name}"
        if name not in values:
            raise UserError(f"{key}: no value is set; set it with {key}=<value>")
        built[name] = _build(kind, values[name], f"{key}.") if _is_node(kind) else values[name]
    return cls(**built)
