"""Decide from the names of a source's files which are read, as which subset, and as training or test rows.

`train.*` and `test.*` in one folder are a subset with the folder's name; so are their shards, which the Hub names
`train-00000-of-00002.*`. Files of other names in one folder are one subset without a split. One rule serves a folder on
disk and the list of files in a Hub repository, so a data set is read alike from both.
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
    split: Split  # unsplit: its subset has no test file, so some of its prompts are held out


def layout(names: Sequence[str], title: str, subsets: Sequence[str] | None, where: str) -> list[File]:
    """Return the files of a folder to read, with subset and split.

    Args:
        names: paths inside the folder, with forward slashes; files without a known ending are ignored.
        title: the folder's own name; names the subset of files that lie directly in it or in its `data/`.
        subsets: the subset folders to read; None reads every folder with a `train.*`.
        where: the folder as the user named it, for errors.

    Raises:
        UserError: a subset is missing, or there are no data files.
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
                "choose from these, or read all with data.subsets=null"
            )
        chosen = list(subsets)
    elif title in with_train or (not with_train and title in folders):
        chosen = [title]
    else:
        chosen = with_train
    if not chosen:
        raise UserError(
            f"data: {where} has no data files; expected train.* and test.*, with one of the endings "
            f"{' '.join(ENDINGS)}, in it or in a folder for each subset"
        )
    return [file for subset in sorted(set(chosen)) for file in _subset_files(folders[subset], subset, where)]


def _subset_files(names: Sequence[str], subset: str, where: str) -> list[File]:
    splits: dict[str, Literal["train", "test"] | None] = {name: _split(name) for name in names}
    if "train" not in splits.values():  # then all files but the test files hold training rows
        splits = {name: split or "train" for name, split in splits.items()}
    if "train" not in splits.values():
        raise UserError(f"data: {where} has test files only ({', '.join(names)}); expected a train.* beside them")
    has_test = "test" in splits.values()
    return [File(name, subset, split if has_test else "unsplit") for name, split in splits.items() if split]


def _split(name: str) -> Literal["train", "test"] | None:
    base = name.rpartition("/")[2]
    match = _SPLIT.fullmatch(base.removesuffix(ending(base) or ""))
    if match is None:
        return None
    return "train" if match[1] == "train" else "test"
