"""Decide from the names of a source's files which are read, as which subset, and as training or test rows.

A word of its name makes a file one of training rows (`train`) or of test rows (`test`, `validation`, `eval`, `dev`),
as in `train_prefs-00000-of-00002.parquet`; else the name of its folder does. The training and test files of one folder
are a subset with the folder's name. Files of other names in one folder are one subset without a split. One rule serves
a folder on disk and the list of files in a Hub repository, so a data set is read alike from both.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.row_files import ENDINGS, ending

Split = Literal["train", "test", "unsplit"]

# the words that the datasets library looks for in the names of files
_WORDS: dict[str, Literal["train", "test"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"), "test"),
}
_METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")  # of the datasets library
_SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)")


@dataclass(frozen=True)
class File:
    """One file of a source, by its path inside it."""

    name: str
    subset: str
    split: Split  # unsplit: its subset has no test file, so some of its prompts are held out


def layout(names: Sequence[str], title: str, subsets: Sequence[str] | None, where: str) -> tuple[list[File], list[str]]:
    """Return the files of a folder to read, with subset and split, and the names of data files that are not read.

    Args:
        names: paths inside the folder, with forward slashes; files without a known ending are ignored.
        title: the folder's own name; names the subset of files that lie directly in it or in its `data/`.
        subsets: the subset folders to read; None reads every folder with a training file.
        where: the folder as the user named it, for errors.

    Raises:
        UserError: a subset or a shard is missing, or there are no data files.
    """
    folders: dict[str, dict[str, Literal["train", "test"] | None]] = {}  # the split of each file, by subset
    with_rows: list[str] = []
    for name in sorted(names):
        *parents, base = name.split("/")
        if base in _METADATA or any(part.startswith(".") for part in name.split("/")):
            continue
        split = _split(base)
        if split is not None or ending(base) is not None:
            with_rows.append(name)
        if split is None and parents and (split := _split(parents[-1])) is not None:
            parents.pop()
        if len(parents) <= 1 and ending(base) is not None:
            folder = parents[0] if parents and parents[0] != "data" else title
            folders.setdefault(folder, {})[name] = split
    with_train = [folder for folder, splits in folders.items() if "train" in splits.values()]
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
    files = [file for subset in sorted(set(chosen)) for file in _subset_files(folders[subset], subset, where)]
    _check_shards([file.name for file in files], where)
    read = {file.name for file in files}
    return files, [name for name in with_rows if name not in read]


def _subset_files(splits: dict[str, Literal["train", "test"] | None], subset: str, where: str) -> list[File]:
    if "train" not in splits.values():  # then all files but the test files hold training rows
        splits = {name: split or "train" for name, split in splits.items()}
    if "train" not in splits.values():
        raise UserError(f"data: {where} has test files only ({', '.join(splits)}); expected a train.* beside them")
    has_test = "test" in splits.values()
    return [File(name, subset, split if has_test else "unsplit") for name, split in splits.items() if split]


def _split(name: str) -> Literal["train", "test"] | None:
    words = re.split(r"[\W\d_]+", name.removesuffix(ending(name) or "").lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def _check_shards(names: Sequence[str], where: str) -> None:
    """Refuse a data set that lacks some of the shards that it is divided into, such as `-00001-of-00003`."""
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            found.setdefault((shard[1], shard[3]), set()).add(int(shard[2]))
    for (start, total), numbers in found.items():
        start_at = int(int(total) in numbers)  # some tools count shards from 1
        missing = next((one for one in range(start_at, int(total) + start_at) if one not in numbers), None)
        if missing is not None:
            raise UserError(
                f"data: {where} lacks {int(total) - len(numbers)} of the {int(total)} shards of {start}, the first is "
                f"{missing:0{len(total)}}-of-{total}; download it, or give one file as data.path"
            )
