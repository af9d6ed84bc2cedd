"""The import rule of docs/architecture.md: imports go to lower floors or stay in the room, and form no circle."""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "gpt2_rlhf"
FLOORS = (
    ("config", "embedded"),
    ("store",),
    ("models", "hub", "launch"),
    ("evidence",),
    ("rows", "ppo_trainer"),
    ("data", "sft", "reward", "ppo", "rloo", "dpo", "evaluate", "publish", "chat"),
    ("building", "pipeline", "sweep", "cli", "__main__"),
)
ON_ONE_FLOOR = {
    ("pipeline", "building"),
    ("sweep", "building"),
    ("cli", "pipeline"),
    ("cli", "sweep"),
    ("sweep", "pipeline"),
    ("__main__", "cli"),
}  # the only imports between two names of one floor
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


@functools.cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports, also inside functions, by dotted name."""
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
        for path in package.rglob("*.py")
    }
    found: dict[str, set[str]] = {name: set() for name in modules}
    for module, path in modules.items():
        for node in ast.walk(_parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: write imports from {package.name}, not from a dot"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in (name.split(".") for name in names):
                if name[0] == package.name:
                    longest = next(end for end in range(len(name), 0, -1) if ".".join(name[1:end]) in modules)
                    found[module] |= {".".join(name[1:longest])} - {module}
    return found


def faults(found: dict[str, set[str]]) -> list[str]:
    """What breaks the rule: an import up or sideways between rooms, or a circle."""
    wrong = [
        f"{module} imports {name}, which is not on a lower floor"
        for module, names in found.items()
        for name in names - {""}  # the package itself only sets the environment
        for room, other in [(module.split(".")[0], name.split(".")[0])]
        if room != other and FLOOR[other] >= FLOOR[room] and (room, other) not in ON_ONE_FLOOR
    ]
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        wrong.append(f"a circle: {' -> '.join(reversed(error.args[1]))}")
    return wrong


def test_imports_point_down_and_form_no_circle() -> None:
    assert faults(imports(PACKAGE)) == []


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        ("store/plan.py", "from gpt2_rlhf.evidence import card", "store.plan imports evidence.card"),
        ("models/tokens.py", "def f():\n    import gpt2_rlhf.hub.tries", "models.tokens imports hub.tries"),
        ("sft.py", "from gpt2_rlhf import pipeline", "sft imports pipeline"),
        ("config/errors.py", "from gpt2_rlhf.config import compose", "config.errors -> config.compose"),
    ],
)
def test_an_import_against_the_rule_is_found(tmp_path: Path, module: str, line: str, words: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "gpt2_rlhf" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    changed = tmp_path / "gpt2_rlhf" / module
    changed.write_text(f"{changed.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    assert any(words in fault for fault in faults(imports(tmp_path / "gpt2_rlhf")))


def test_the_house_stays_small() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms | files <= set(FLOOR)
    assert len(rooms) <= 9
    assert len(files) <= 14  # without __init__.py, which only sets the environment
    assert len(FLOORS) <= 7
