"""Load a function that the user names by its import path: the utility of the data, or the score that PPO maximises."""

import importlib
from collections.abc import Callable, Sequence
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


def _load(key: str, path: str) -> Callable[..., Any]:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}: {path!r} cannot be imported ({error}); give package.module:function, or null"
        ) from error
