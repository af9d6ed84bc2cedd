"""Expand a command with lists of values, such as ppo.args.kl_coef=0.05,0.1 seed=0,1, into one command a point.

Hydra's own parser reads the lists, so `range(1,4)` and `choice(a,b)` are lists too. A comma in a path or another text
that is no list needs quotes, as in Hydra.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

from gpt2_rlhf.config.errors import UserError

_OF_THE_SWEEP = ("output_dir", "publish", "sweep")  # the same for all points


@dataclass(frozen=True)
class Point:
    """One point of a sweep: all its overrides, and those among them that the points differ in."""

    overrides: tuple[str, ...]
    varied: tuple[str, ...]

    @property
    def label(self) -> str:
        """The varied values, each by the last part of its key."""
        return " ".join(one.partition("=")[0].rpartition(".")[2] + "=" + one.partition("=")[2] for one in self.varied)


def points(overrides: Sequence[str]) -> list[Point]:
    """Return the points in the order of the lists, the last list changing fastest.

    Raises:
        UserError: no override has a list, or one has a list that may have none.
    """
    lists = [_values(override) for override in overrides]
    varied = [override for override, values in zip(overrides, lists, strict=True) if len(values) > 1]
    if not varied:
        raise UserError(
            "sweep: no setting has several values; expected a list such as ppo.args.kl_coef=0.05,0.1 or seed=range(0,3)"
        )
    for override in varied:
        key = override.partition("=")[0]
        if key.split(".")[0] in _OF_THE_SWEEP:
            raise UserError(f"{override}: {key} is the same for all points of a sweep; expected one value")
        if sum(one.startswith(f"{key}=") for one in overrides) > 1:
            raise UserError(f"{override}: {key} is set twice, so that its points would be alike; set it once")
        if len(set(values := _values(override))) < len(values):
            raise UserError(f"{override}: two points would be alike; list each value once")
    return [
        Point(chosen, tuple(one for one, values in zip(chosen, lists, strict=True) if len(values) > 1))
        for chosen in itertools.product(*lists)
    ]


def _values(override: str) -> list[str]:
    """Return the override once for each of its values."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return [override]  # compose.load quotes a text, or says what is wrong
    if not parsed.is_sweep_override():
        return [override]
    if parsed.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{override}: glob() is not read; expected the values, such as a,b")
    key, values = override.partition("=")[0], parsed.sweep_string_iterator()
    # Hydra escapes more than it needs to read the value again
    return [f"{key}={value}".replace("\\:", ":").replace("\\=", "=") for value in values]
