"""Decide from the names of a source's files which are read, as which subset, and as training or test rows.

`train.*` and `test.*` (or shards of them, as the Hub names them: `train-00000-of-00002.*`) are one subset, named after
their folder; files of other names in one folder are one set without a split. The same rule serves a folder on disk and
the listing of a Hub repository, so that a data set means the same in both places.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.row_files import ENDINGS, ending

_SPLIT = re.compile(r"(train|test)(-\d+-of-\d+.*)?")

Split = Literal["train", "test", "unsplit"]


@dataclass(frozen=True)
class File:
    """One file of a source, by its path inside it."""

    name: str
    subset: str
    split: Split  # unsplit: its subset has no test file, so that some of its prompts must be held out


def layout(names: Sequence[str], title: str, subsets: Sequence[str] | None, where: str) -> list[File]:
    """Which files of a folder are read, and as which subset and split.

    Args:
        names: paths inside the folder, with forward slashes; anything without a known ending is passed over.
        title: the folder's own name, its subset's name where the files lie in it directly (or in `data/`).
        subsets: the subset folders wanted; None reads every folder with a `train.*`.
        where: what the user calls the folder.

    Raises:
        UserError: a subset is not there, or nothing is.
    """
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, base = name.rpartition("/")
        is_hidden = folder.startswith(".") or base.startswith(".")
        if "/" not in folder and not is_hidden and ending(base) is not None:
            folders.setdefault(title if folder in ("", "data") else folder, []).append(name)
    with_train = [folder for folder, inside in folders.items() if any(_split(n) == "train" for n in inside)]
    if subsets is not None and not (title in with_train and title in subsets):
        missing = [subset for subset in subsets if subset not in folders]
        if missing:
            raise UserError(
                f"data.subsets: {where} has no {', '.join(missing)}; it has {', '.join(folders) or 'no data files'}; "
                "name some of these, or read every one with data.subsets=null"
            )
        wanted = list(subsets)
    elif title in with_train or (not with_train and title in folders):
        wanted = [title]
    else:
        wanted = with_train
    if not wanted:
        raise UserError(
            f"data: {where} has no data files; wanted train.* and test.* with one of the endings {' '.join(ENDINGS)}, "
            "in it or in a folder for each subset"
        )
    return [file for subset in sorted(set(wanted)) for file in _subset_files(folders[subset], subset, where)]


def _subset_files(names: Sequence[str], subset: str, where: str) -> list[File]:
    splits: dict[str, Literal["train", "test"] | None] = {name: _split(name) for name in names}
    if "train" not in splits.values():  # loose files: any but the test files hold training rows
        splits = {name: split or "train" for name, split in splits.items()}
    if "train" not in splits.values():
        raise UserError(f"data: {where} has test files only ({', '.join(names)}); wanted a train.* beside them")
    if "test" not in splits.values():
        return [File(name, subset, "unsplit") for name, split in splits.items() if split]
    return [File(name, subset, split) for name, split in splits.items() if split]


def _split(name: str) -> Literal["train", "test"] | None:
    base = name.rpartition("/")[2]
    match = _SPLIT.fullmatch(base.removesuffix(ending(base) or ""))
    return None if match is None else match.group(1)  # type: ignore[return-value]
