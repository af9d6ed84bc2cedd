"""Load a function that the user names by its import path: the data's own measure of quality, or PPO's reward."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from gpt2_rlhf.config.errors import UserError


def load_utility(path: str | None) -> Callable[[str, str], float] | None:
    """The (prompt, answer) -> float that "module:function" names, or None where the truth is unknown.

    Raises:
        UserError: there is no such module or function.
    """
    return None if path is None else load_function("data.utility", path)


def load_score_function(path: str | None) -> Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None:
    """Load the (prompts, answers) -> scores that PPO maximises, or return None for the reward model.

    Raises:
        UserError: there is no such module or function.
    """
    return None if path is None else load_function("ppo.reward.function", path)


def load_function(key: str, path: str) -> Callable[..., Any]:
    """The function that "module:function" names; `key` is the setting that names it.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}: {path!r} cannot be imported ({error}); give package.module:function, or null"
        ) from error
