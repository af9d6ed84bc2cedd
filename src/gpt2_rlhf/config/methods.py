"""The methods that train the policy: the setting `method` chooses one, and the third stage bears its name."""

from collections.abc import Iterable

LABELS = {"ppo": "PPO", "rloo": "RLOO", "dpo": "DPO"}
_TABLES = {"rloo": "ppo", "dpo": "reward"}


def of(names: Iterable[str]) -> str:
    """Return the method among the names of a run's stages, models or findings; raise a LookupError if none is."""
    for name in names:
        if name in LABELS:
            return name
    raise LookupError("no policy")


def table_of(stage: str) -> str:
    """Return the table of the data that a training stage reads: its own, or that of another stage."""
    return _TABLES.get(stage, stage)
