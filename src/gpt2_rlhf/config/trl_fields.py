"""Read the fields of TRL's config dataclasses from their source, so that no field list is copied into this project.

Importing TRL and torch takes seconds; parsing the files that define the fields takes milliseconds. So
`make config`, `make status` and the error about a misspelt argument come at once.
"""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_BASES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
)
_CONFIGS = {
    "sft": ("trl", "trainer/sft_config.py", "SFTConfig"),
    "reward": ("trl", "trainer/reward_config.py", "RewardConfig"),
    "ppo": ("trl", "experimental/ppo/ppo_config.py", "PPOConfig"),
    "rloo": ("trl", "trainer/rloo_config.py", "RLOOConfig"),
    "dpo": ("trl", "trainer/dpo_config.py", "DPOConfig"),
}
STAGES = tuple(_CONFIGS)
_ENUM_FILES = ("trainer_utils.py", "training_args.py")
_PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "list[str]": list[str]}


@dataclass(frozen=True)
class TrlField:
    """One argument of a TRL config: the type that OmegaConf checks, and the allowed values if TRL lists them."""

    type: Any
    choices: tuple[str, ...] | None


@cache
def fields(stage: str) -> dict[str, TrlField]:
    """Return every argument of the TRL config of `stage` (one of STAGES), inherited ones included."""
    found: dict[str, TrlField] = {}
    for package, file, name in (*_BASES, _CONFIGS[stage]):
        body = next(one.body for one in _tree(package, file).body if isinstance(one, ast.ClassDef) and one.name == name)
        found |= {ast.unparse(one.target): _field(one.annotation) for one in body if isinstance(one, ast.AnnAssign)}
    return found


@cache
def model_types(head: str) -> frozenset[str]:
    """Return the model types that transformers has a class with this head for: CAUSAL_LM or SEQUENCE_CLASSIFICATION."""
    body = _tree("transformers", "models/auto/modeling_auto.py").body
    assigned = {ast.unparse(one.targets[0]): one.value for one in body if isinstance(one, ast.Assign)}
    mapping = assigned[f"MODEL_FOR_{head}_MAPPING_NAMES"]
    assert isinstance(mapping, ast.Call)
    return frozenset(name for name, _ in ast.literal_eval(mapping.args[0]))


@cache
def loss_types(stage: str) -> tuple[str, ...]:
    """Return the losses that the trainer of `stage`, sft or dpo, compares its argument loss_type with."""
    found = dict[str, None]()
    for node in ast.walk(_tree("trl", f"trainer/{stage}_trainer.py")):
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("loss_type"):
            found |= {str(value.value): None for value in node.comparators if isinstance(value, ast.Constant)}
    return tuple(found)


def _field(annotation: ast.expr) -> TrlField:
    members = ast.unparse(annotation).split(" | ")
    kinds = {str if _choices(one) else _PLAIN.get(one, Any) for one in members if one != "None"}
    if len(kinds) > 1 or Any in kinds:
        return TrlField(type=Any, choices=None)  # dicts, JSON strings and the like are left to TRL's own parsing
    (base,) = kinds
    choices = next(filter(None, map(_choices, members)), None)
    return TrlField(type=base | None if "None" in members else base, choices=choices)


def _choices(kind: str) -> tuple[str, ...] | None:
    """Return the values that a Literal of strings or a string enum of transformers allows; None for other types."""
    if not kind.startswith("Literal["):
        return _enums().get(kind)
    values = ast.literal_eval(kind.removeprefix("Literal"))
    return tuple(values) if all(isinstance(value, str) for value in values) else None


@cache
def _enums() -> dict[str, tuple[str, ...]]:
    nodes = [node for file in _ENUM_FILES for node in _tree("transformers", file).body]
    return {
        node.name: tuple(ast.literal_eval(one.value) for one in node.body if isinstance(one, ast.Assign))
        for node in nodes
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases)
    }


@cache
def _tree(package: str, file: str) -> ast.Module:
    """Parse a file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).parent.joinpath(file).read_text(encoding="utf-8"))
