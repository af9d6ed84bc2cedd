"""Read preference rows from the Hub, from local files or from the bundled generator; check them before training.

A Hub data set is downloaded as files at its pinned commit and then read like a local folder. `load_dataset` would do
the same with one more copy on disk, but without file and line to name a bad row by, and offline without telling a
half downloaded snapshot from a whole one. Where files lie decides what they are: `train.*` and `test.*` (or shards,
`train-00000-of-00002.*`) are one subset, named after their folder; other files are read as one unsplit set.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

from gpt2_rlhf.errors import UserError
from gpt2_rlhf.row_files import ENDINGS, check_first_row, ending, rows
from gpt2_rlhf.settings import Data

HUB_TIMEOUT_S = 5
_EMBEDDED_DIR = Path(__file__).parent / "embedded"
_SPLIT = re.compile(r"(train|test)(-\d+-of-\d+.*)?")  # the second half is how the Hub names shards
_COMMIT = re.compile(r"[0-9a-f]{40}")

Split = Literal["train", "test", "unsplit"]


@dataclass(frozen=True)
class File:
    """One file of a source, by its path inside it."""

    name: str
    subset: str
    split: Split  # unsplit: its subset has no test file, so that some of its prompts must be held out


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file holds it; `values` is None where the line is no JSON at all."""

    values: Any
    subset: str
    split: Split
    name: str  # "harmless-base/train.jsonl.gz:12", 1-based


def check(data: Data) -> None:
    """Refuse a source that cannot be read, before anything heavy is imported.

    Raises:
        UserError: it is missing, unreadable, empty or has other columns; or the Hub cannot give it.
    """
    if data.path is not None:
        root, files = _local(data)
        for file in files:
            check_first_row(root / file.name)
    elif data.name == "embedded":
        _embedded_counts(data)
    else:
        root, files = _hub(data)
        if root is not None:
            for file in files:
                check_first_row(root / file.name)


def read(data: Data) -> Iterator[RawRow]:
    """Every row of the source, in the order of its files' names.

    Raises:
        UserError: as `check`; or a file turns out to be cut short.
    """
    if data.path is None and data.name == "embedded":
        yield from _embedded(data)
        return
    root, files = _local(data) if data.path is not None else _downloaded(data)
    for file in files:
        check_first_row(root / file.name)
    for file in files:
        for number, values in rows(root / file.name):
            yield RawRow(values, file.subset, file.split, f"{file.name}:{number}")


def describe(data: Data) -> str:
    """What the user calls this source, for reports and errors."""
    if data.path is not None:
        return data.path
    return data.name if data.name == "embedded" else f"{data.name}@{data.revision}"


def fingerprint(data: Data) -> str:
    """What the source holds, as text that changes when the rows would.

    Local files count by their bytes, a Hub data set by its commit, generated pairs by the generator's source.

    Raises:
        UserError: the local source is missing or has no data files.
    """
    if data.path is None and data.name != "embedded":
        return f"{data.name}@{data.revision}/{','.join(sorted(data.subsets)) if data.subsets else '*'}"
    digest = hashlib.sha256()
    if data.path is not None:
        root, files = _local(data)
        for file in files:
            digest.update(f"{file.split}\0{file.subset}\0{file.name}\0".encode())
            with (root / file.name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    for name in ("generator.py", "utility.py"):
        digest.update((_EMBEDDED_DIR / name).read_bytes())
    return f"embedded:{digest.hexdigest()}:{data.train_pairs}:{data.test_pairs}:{data.seed}"


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
        if "/" not in folder and not name.startswith(".") and ending(base) is not None:
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


def _local(data: Data) -> tuple[Path, list[File]]:
    """The folder that file names start from, and the files."""
    path = Path(str(data.path)).expanduser()
    where = f"data.path={data.path}"
    if not path.exists():
        raise UserError(f"{where}: nothing there; wanted a data file or a folder of them (seen from {Path.cwd()})")
    try:
        if path.is_file():
            if ending(path.name) is None:
                raise UserError(f"{where}: unknown ending; wanted one of {' '.join(ENDINGS)}")
            title = path.name.removesuffix(ending(path.name) or "")
            if data.subsets is not None and title not in data.subsets:
                raise UserError(
                    f"data.subsets: {data.path} is one file and has no subset folders; set data.subsets=null"
                )
            return path.parent, [File(path.name, title, "unsplit")]
        names = [p.relative_to(path).as_posix() for p in [*path.glob("*"), *path.glob("*/*")] if p.is_file()]
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    return path, layout(names, path.resolve().name, data.subsets, where)


def _embedded(data: Data) -> Iterator[RawRow]:
    from gpt2_rlhf.embedded import generator

    train_pairs, test_pairs = _embedded_counts(data)
    splits: list[tuple[Split, int, int]] = [
        ("train", train_pairs, 2 * data.seed),  # even and odd: no seed's test set is another's training set
        ("test", test_pairs, 2 * data.seed + 1),
    ]
    for split, count, seed in splits:
        for number, values in enumerate(generator.pairs(count, seed), 1):
            yield RawRow(values, "embedded", split, f"embedded.{split}:{number}")


def _embedded_counts(data: Data) -> tuple[int, int]:
    if data.train_pairs is None or data.test_pairs is None:
        raise UserError(
            "data.train_pairs, data.test_pairs: null; the bundled data is generated and has no end; give both a number"
        )
    return data.train_pairs, data.test_pairs


def _hub(data: Data) -> tuple[Path | None, list[File]]:
    """The files to read of a Hub data set, and the folder they lie in; None if some must still be downloaded.

    Once all are there, no request is made: a commit does not change.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    title, where = data.name.rpartition("/")[2], f"{data.name} on the Hub"
    with _hub_errors(data):
        try:
            if not _is_commit(data.revision):
                raise CachedRepoTreeNotFoundError  # a branch moves, so what is here may be an older state of it
            tree = get_cached_repo_tree(data.name, repo_type="dataset", revision=data.revision)
            files = layout([file.path for file in tree], title, data.subsets, where)
            root = snapshot_download(
                data.name,
                repo_type="dataset",
                revision=data.revision,
                allow_patterns=[escape(file.name) for file in files],
                local_files_only=True,
            )
            return Path(root), files
        except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
            return None, layout(_names_on_hub(data), title, data.subsets, where)


def _names_on_hub(data: Data) -> list[str]:
    """The paths in the data set's repository; one request, one try."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(data.name, revision=data.revision, timeout=HUB_TIMEOUT_S)
    if not _is_commit(data.revision):
        raise UserError(
            f"data.revision: {data.revision}; wanted a commit of {data.name}, so that a later run reads the same rows; "
            f"its newest is data.revision={info.sha}"
        )
    return [sibling.rfilename for sibling in info.siblings or []]


def _is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def _downloaded(data: Data) -> tuple[Path, list[File]]:
    from huggingface_hub import snapshot_download

    root, files = _hub(data)
    if root is None:
        with _hub_errors(data):
            patterns = [escape(file.name) for file in files]
            root = Path(
                snapshot_download(data.name, repo_type="dataset", revision=data.revision, allow_patterns=patterns)
            )
    return root, files


@contextmanager
def _hub_errors(data: Data) -> Iterator[None]:
    """Turn what huggingface_hub raises into a line that says what to do."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{data.name}"
    local = "or set data.path to a local copy"
    try:
        yield
    except HFValidationError as error:
        raise UserError(
            f"data.name: {data.name!r} is no name of a Hub data set; wanted owner/name; "
            "for a local file or folder set data.path"
        ) from error
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise UserError(
            f"data.name: {data.name} is gated; accept its terms at {page}, then `hf auth login`, {local}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"data.name: the Hub has no data set {data.name}, or it is private; check the spelling, "
            f"or `hf auth login`, {local}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"data.revision: {data.name} has no revision {data.revision}; take one from {page}/commits/main"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"data.name: the Hub answered {status} for {data.name}; try again, {local}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"data.name: {data.name} is not downloaded and HF_HUB_OFFLINE is set; unset it for one run, {local}"
        ) from error
    except (httpx2.HTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"data.name: the Hub cannot be reached for {data.name} ({type(error.__cause__ or error).__name__}); "
            f"check the network, {local}, or use data=embedded"
        ) from error
