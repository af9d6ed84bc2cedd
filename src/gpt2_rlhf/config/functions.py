"""Load a function that the user names by its import path: the utility of the data, or the score that PPO maximises."""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError


def load_utility(path: str | None) -> Callable[[str, str], float] | None:
    """Import the (prompt, answer) -> float behind data.utility; None if no utility is known.

    Raises:
        UserError: there is no such module or function.
    """
    return None if path is None else _load("data.utility", path)


def load_score_function(path: str | None) -> Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None:
    """Import the (prompts, answers) -> scores behind ppo.reward.function; None if PPO uses the reward model.

    Raises:
        UserError: there is no such module or function.
    """
    return None if path is None else _load("ppo.reward.function", path)


def fingerprint(path: str | None) -> str | None:
    """Return a text that changes when the source of the function does; its name alone if there is no source.

    It covers the module and what that imports, directly or not, from the folder in which its package or file is; of
    installed libraries, only its own. It does not cover files and services that the function reads.
    """
    if path is None:
        return None
    name = path.partition(":")[0]
    try:
        spec = importlib.util.find_spec(name)  # imports the packages that the module is in, but not the module
    except (Exception, SystemExit):  # loading it will say why
        return path
    if spec is None or not str(spec.origin).endswith(".py") or name in sys.stdlib_module_names:
        return path
    digest = hashlib.sha256()
    for module, source in sorted(_sources(name, Path(spec.origin)).items()):
        digest.update(f"{module}\0".encode() + hashlib.sha256(source).digest())
    return f"{path}@{digest.hexdigest()}"


def _sources(name: str, file: Path) -> dict[str, bytes]:
    """Return by name the source of a module, and of the modules beside its package or file that it imports."""
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    is_own_folder = root.name not in ("site-packages", "dist-packages")
    found: dict[str, bytes] = {}
    left = [name]
    while left:
        module = left.pop()
        path = root.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if module not in found and path.is_file() and (is_own_folder or module.split(".")[0] == name.split(".")[0]):
            found[module] = path.read_bytes()
            left += _imported(found[module], module if path.name == "__init__.py" else module.rpartition(".")[0])
    return found


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield every name that the source imports and that may be a module, from the top of its package."""
    try:
        nodes = ast.walk(ast.parse(source))
    except (SyntaxError, ValueError):
        return  # importing it will say so
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            names = [start, *(f"{start}.{name}" for name in names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _load(key: str, path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        raise _refused(key, path, error) from error


def _refused(key: str, path: str, why: BaseException) -> UserError:
    kind = "" if isinstance(why, ImportError | AttributeError) else f"{type(why).__name__}: "
    reason = " ".join(f"{kind}{why}".split())
    return UserError(f"{key}: {path!r} cannot be imported ({reason}); give package.module:function, or null")
