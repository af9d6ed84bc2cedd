"""Load the data's own measure of quality, where it has one, to judge answers by beside the reward model."""

import importlib
from collections.abc import Callable

from gpt2_rlhf.errors import UserError


def load_utility(path: str | None) -> Callable[[str, str], float] | None:
    """The (prompt, answer) -> float that "module:function" names, or None where the truth is unknown.

    Raises:
        UserError: there is no such module or function.
    """
    if path is None:
        return None
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"data.utility: {path!r} cannot be imported ({error}); give package.module:function, or null"
        ) from error
