"""Tell which answers have toxic language, by alt-profanity-check: a linear classifier of the words of a text.

It was trained on tweets and Wikipedia comments that people labelled as offensive or toxic. Its model comes with the
package, so it works offline and gives the same result everywhere. What this is not: it knows English alone, finds
insults and swear words rather than harm said politely, and may take a word for its usual bad use.
"""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from gpt2_rlhf.config.errors import UserError


def check() -> None:
    """Raise a UserError where the classifier is not installed."""
    if importlib.util.find_spec("profanity_check") is None:
        raise UserError(
            "evaluate.toxicity: true, but alt-profanity-check is not installed; run pip install 'gpt2-rlhf[safety]', "
            "or set it to false"
        )


def classifier() -> str:
    """Return name and version of the classifier."""
    return f"alt-profanity-check {version('alt-profanity-check')}"


def are_toxic(answers: Sequence[str]) -> np.ndarray:
    """Return which answers the classifier finds more likely toxic than not, shape (answers,)."""
    from profanity_check import predict  # here, since loading scikit-learn takes a second

    return np.asarray(predict(list(answers))) == 1
