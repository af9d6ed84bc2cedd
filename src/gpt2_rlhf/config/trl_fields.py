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
_SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}


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
        for statement in _class_body(_package_dir(package) / file, name):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[statement.target.id] = _field(statement.annotation)
    return found


@cache
def model_types(head: str) -> frozenset[str]:
    """Return the model types that transformers has a class with this head for: CAUSAL_LM or SEQUENCE_CLASSIFICATION."""
    mapping = f"MODEL_FOR_{head}_MAPPING_NAMES"
    for statement in _tree(_package_dir("transformers") / "models/auto/modeling_auto.py").body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == mapping:
            assert isinstance(statement.value, ast.Call)
            return frozenset(name for name, _ in ast.literal_eval(statement.value.args[0]))
    raise LookupError(mapping)


@cache
def loss_types(stage: str) -> tuple[str, ...]:
    """Return the losses that the trainer of `stage`, sft or dpo, compares its argument loss_type with."""
    found = dict[str, None]()
    for node in ast.walk(_tree(_package_dir("trl") / f"trainer/{stage}_trainer.py")):
        if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith("loss_type"):
            found |= {str(value.value): None for value in node.comparators if isinstance(value, ast.Constant)}
    return tuple(found)


def _field(annotation: ast.expr) -> TrlField:
    members = {ast.unparse(member): _choices(member) for member in _union_members(annotation)}
    is_optional = "None" in members
    members.pop("None", None)
    names = list(members)
    choices = next((values for values in members.values() if values is not None), None)
    if choices is not None and all(name == "str" or values for name, values in members.items()):
        base: Any = str
    elif len(names) == 1 and names[0] in _SCALARS:
        base = _SCALARS[names[0]]
    elif names == ["list[str]"]:
        base = list[str]
    else:
        return TrlField(type=Any, choices=None)  # dicts, JSON strings and the like are left to TRL's own parsing
    return TrlField(type=base | None if is_optional else base, choices=choices)


def _union_members(annotation: ast.expr) -> list[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union_members(annotation.left) + _union_members(annotation.right)
    return [annotation]


def _choices(kind: ast.expr) -> tuple[str, ...] | None:
    """Return the values that a Literal of strings or a string enum of transformers allows; None for other types."""
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
        values = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        texts = tuple(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))
        return texts if len(texts) == len(values) else None
    return _enums().get(kind.id) if isinstance(kind, ast.Name) else None


@cache
def _enums() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for file in _ENUM_FILES:
        for node in _tree(_package_dir("transformers") / file).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "ExplicitEnum" for b in node.bases):
                assigned = [statement.value for statement in node.body if isinstance(statement, ast.Assign)]
                found[node.name] = tuple(str(value.value) for value in assigned if isinstance(value, ast.Constant))
    return found


def _class_body(path: Path, name: str) -> list[ast.stmt]:
    return next(n for n in _tree(path).body if isinstance(n, ast.ClassDef) and n.name == name).body


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _package_dir(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])
