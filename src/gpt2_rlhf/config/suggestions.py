"""Say what a user may have meant: the setting with a similar name, and what a value of a setting looks like."""

import difflib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args

_IN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list[int]: "a list of whole numbers, such as [1, 2]",
    list[str]: "a list of texts, such as [a, b]",
    dict[str, int]: "whole numbers by name, such as {a: 1}",
    dict[str, float]: "numbers by name, such as {a: 0.5}",
    NoneType: "null",
}
_FEW = 20
_SHOWN = 3


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """Return the end of an error message: the known names that are most like it, or all of them if they are few."""
    begun = [name for name in known if given and name.startswith(given)]
    if close := begun[:_SHOWN] or difflib.get_close_matches(given, known, n=1):
        return f"did you mean {_or(close)}?"
    return f"expected one of {', '.join(known)}" if len(known) < _FEW else "`make config` shows what is set"


def setting_like(key: str, names: Sequence[str], rare: Sequence[str]) -> str:
    """Return the end of the message on a setting that does not exist.

    Its last part is compared with those of its neighbours first, then with those of its stage, then with all: by
    abbreviation (lr), as a part of the name (epochs, kl), and by spelling. rare: names that come after all others.
    """
    parent, _, last = key.rpartition(".")
    beside = [name for name in names if parent and name.startswith(f"{parent}.")]
    for among in (names, rare):
        for prefix in dict.fromkeys((f"{parent}.", f"{key.split('.')[0]}.", "")):
            near = {name: name.rpartition(".")[2] for name in among if name.startswith(prefix)}
            close = [name for name, part in near.items() if "_" in part and last == _initials(part)]
            close = close or [name for name, part in near.items() if set(last.split("_")) <= set(part.split("_"))]
            close = close or [name for name in near if last in name.split(".")]
            if not close and (prefix or not parent):  # all settings have too many names that are spelt alike
                spelt = difflib.get_close_matches(last, near.values(), n=1)
                close = [name for name, part in near.items() if part in spelt]
            if close:
                return f"did you mean {_or(sorted(close, key=len)[:_SHOWN])}?"
        if 0 < len(beside) < _FEW:
            return f"expected one of {', '.join(beside)}"
    return "`make config` shows what is set"


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def value_of(key: str, kinds: Mapping[str, Any]) -> str | None:
    """Return what a setting's value is expected to be; None where that is not known."""
    if key not in kinds:
        if parent := kinds.get(key.rpartition(".")[0]):  # an entry of a dict
            return _IN_WORDS.get((get_args(parent) or [None])[-1])
        below = [name for name in kinds if name.startswith(f"{key}.")]
        shown = below[-_SHOWN:] if ".args." in "".join(below) else below[:_SHOWN]  # PPO's own follow those of training
        return f"a value for one of its settings, such as {_or(shown)}" if below else None
    kind = kinds[key]
    words = [_IN_WORDS.get(one, "") for one in (get_args(kind) if isinstance(kind, UnionType) else [kind])]
    return _or(sorted(words, key=len, reverse="such as" not in "".join(words))) if all(words) else None


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
