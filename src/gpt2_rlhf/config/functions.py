"""Load a function that the user names by its import path: the utility of the data, or the score that PPO maximises."""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError


def load_utility(path: str | None) -> Callable[[str, str], float] | None:
    """Import the (prompt, answer) -> float behind data.utility, or None; a UserError if there is no such function."""
    return None if path is None else _load("data.utility", path)


def load_score_function(path: str | None) -> Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None:
    """Import the (prompts, answers) -> scores behind ppo.reward.function, or None; errors as `load_utility`."""
    return None if path is None else _load("ppo.reward.function", path)


def fingerprint(path: str | None) -> str | None:
    """Return a text that changes when the source of the function does; its name alone if there is no source.

    It covers the module and what that imports, directly or not, from the folder in which its package or file is; of
    installed libraries, only its own. It does not cover files and services that the function reads.
    """
    if path is None:
        return None
    name = path.partition(":")[0]
    _look_in_the_current_folder()
    try:
        spec = importlib.util.find_spec(name)  # imports the packages that the module is in, but not the module
    except (Exception, SystemExit):  # loading it will say why
        return path
    if spec is None or spec.origin is None or spec.origin[-3:] != ".py":
        return path
    file = Path(spec.origin)
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    only = name.partition(".")[0] if root.name in ("site-packages", "dist-packages") else None
    digest = hashlib.sha256()
    for place, source in sorted(_sources(name, root, only).items()):
        digest.update(f"{place.relative_to(root)}\0".encode() + hashlib.sha256(source).digest())
    return f"{path}@{digest.hexdigest()}"


def _look_in_the_current_folder() -> None:
    """Let modules be imported from there also by the script `gpt2-rlhf`, as `python -m gpt2_rlhf` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def _sources(name: str, root: Path, only: str | None) -> dict[Path, bytes]:
    """Return the files below `root` of a module and of all that it imports, with their content; none is executed.

    only: the package to stay in. modulefinder of the standard library fails at packages without an __init__.py.
    """
    found: dict[Path, bytes] = {}
    names = {name}
    while names:
        parts = names.pop().split(".")
        above = [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
        for file in (file for one in above for file in (one / "__init__.py", one.with_name(f"{one.name}.py"))):
            if file not in found and file.is_file() and parts[0] == (only or parts[0]):
                found[file] = file.read_bytes()
                names |= _imported(found[file], file.parent.relative_to(root).parts)
    return found


def _imported(source: bytes, package: Sequence[str]) -> set[str]:
    """Return the modules that a source imports anywhere, with the names out of them, which may be modules, too."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # loading it will say so
        return set()
    names = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            above = package[: max(len(package) - node.level + 1, 0)] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{module}.{one.name}".removeprefix(".") for one in node.names}
    return names


def _load(key: str, path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    _look_in_the_current_folder()
    try:
        return getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())
        raise UserError(
            f"{key}: {path!r} cannot be imported ({reason}); give package.module:function, or null"
        ) from error
