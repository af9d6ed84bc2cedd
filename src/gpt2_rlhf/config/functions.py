"""Load a function that the user names by its import path: the utility of the data, or the score that PPO maximises."""

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from modulefinder import ModuleFinder
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
    if spec is None or spec.origin is None or spec.origin[-3:] != ".py" or name in sys.stdlib_module_names:
        return path
    file = Path(spec.origin)
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    others = [one.stem for one in root.iterdir() if one.stem != name.partition(".")[0]]
    is_library = root.name in ("site-packages", "dist-packages")
    finder = ModuleFinder([str(root)], excludes=others if is_library else [])
    with contextlib.suppress(SyntaxError, ImportError):  # loading it will say so, too
        finder.import_hook(name)
    digest = hashlib.sha256(file.read_bytes())
    for module, found in sorted(finder.modules.items()):
        if Path(str(found.__file__)).is_file():  # not what is built in, nor a package that cannot be read
            digest.update(f"{module}\0".encode() + hashlib.sha256(Path(found.__file__).read_bytes()).digest())
    return f"{path}@{digest.hexdigest()}"


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
