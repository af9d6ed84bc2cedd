"""Read preference rows from the Hub, from local files or from the bundled generator; check them before training.

A Hub data set is downloaded as files at its pinned commit and then read like a local folder. `load_dataset` would do
the same with one more copy on disk, but without file and line to name a bad row by, and offline without telling a
half downloaded snapshot from a whole one.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf import embedded
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.rows import hub_data
from gpt2_rlhf.rows.layout import File, Split, layout
from gpt2_rlhf.rows.row_files import ENDINGS, check_first_row, ending, file_sha256, rows

_EMBEDDED_DIR = Path(embedded.__file__).parent


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file holds it; `values` is None where the line is no row at all."""

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
        root, files = hub_data.locate(data)
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
    root, files = _local(data) if data.path is not None else hub_data.download(data)
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
            digest.update(f"{file.split}\0{file.subset}\0{file.name}\0".encode() + file_sha256(root / file.name))
        return f"sha256:{digest.hexdigest()}"
    for source in sorted(_EMBEDDED_DIR.glob("*.py")):
        if source.name != "build.py":  # it trains the bundled model and has no part in the rows
            digest.update(source.read_bytes())
    return f"embedded:{digest.hexdigest()}:{data.train_pairs}:{data.test_pairs}:{data.seed}"


def _local(data: Data) -> tuple[Path, list[File]]:
    """The folder that file names start from, and the files."""
    path = Path(str(data.path)).expanduser()
    where = f"data.path={data.path}"
    try:
        if not path.exists():
            raise UserError(f"{where}: nothing there; wanted a data file or a folder of them (seen from {Path.cwd()})")
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
