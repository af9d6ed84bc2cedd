"""Read preference rows from the Hub, from local files or from the bundled generator; check them before training.

A Hub data set is downloaded as files at its pinned commit and then read like a local folder. `load_dataset` would make
another copy on disk, would not know the file and line of a bad row, and offline would accept an incomplete download.
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
from gpt2_rlhf.rows.row_files import ENDINGS, check_first_row, ending, rows
from gpt2_rlhf.store.files import sha256

_EMBEDDED_DIR = Path(embedded.__file__).parent


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file holds it; `values` is None for a line that cannot be read."""

    values: Any
    subset: str
    split: Split
    name: str  # "harmless-base/train.jsonl.gz:12", 1-based


def check(data: Data) -> None:
    """Refuse a source that cannot be read. Imports nothing heavy, and downloads no data.

    Raises:
        UserError: the source is missing, unreadable, empty or has other columns; or the Hub does not give it.
    """
    if _is_embedded(data):
        _embedded_counts(data)
        return
    root, files, _ = _located(data)
    if root is not None:
        for file in files:
            check_first_row(root / file.name)


def read(data: Data) -> Iterator[RawRow]:
    """Yield every row of the source, in the order of its files' names.

    Raises:
        UserError: as `check`; or a file is cut short.
    """
    if _is_embedded(data):
        yield from _embedded(data)
        return
    root, files = _local(data)[:2] if data.path is not None else hub_data.download(data)
    for file in files:
        check_first_row(root / file.name)
    for file in files:
        for number, values in rows(root / file.name):
            yield RawRow(values, file.subset, file.split, f"{file.name}:{number}")


def is_here(data: Data) -> bool:
    """Whether the rows can be read without a download.

    Raises:
        UserError: as `check`.
    """
    return _is_embedded(data) or _located(data)[0] is not None


def not_read(data: Data) -> list[str]:
    """Return the names of the source's data files that `read` leaves out.

    Raises:
        UserError: as `check`.
    """
    return [] if _is_embedded(data) else _located(data)[2]


def describe(data: Data) -> str:
    """Return the name of this source for reports and errors."""
    if data.path is not None:
        return data.path
    return data.name if data.name == "embedded" else f"{data.name}@{data.revision}"


def fingerprint(data: Data) -> str:
    """Return a text that changes whenever the rows of the source change.

    It covers the bytes of local files, the commit of a Hub data set, or the generator's source for generated pairs.

    Raises:
        UserError: the local source is missing or has no data files.
    """
    digest = hashlib.sha256()
    if data.path is not None:
        root, files, _ = _local(data)
        for file in files:
            path = root / file.name
            try:
                digest.update(f"{file.split}\0{file.subset}\0{file.name}\0".encode() + bytes.fromhex(sha256(path)))
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        return f"sha256:{digest.hexdigest()}"
    if data.name != "embedded":
        return f"{data.name}@{data.revision}/{','.join(sorted(data.subsets)) if data.subsets else '*'}"
    for source in sorted(_EMBEDDED_DIR.glob("*.py")):
        if source.name != "build.py":  # it trains the bundled model and does not affect the rows
            digest.update(source.read_bytes())
    return f"embedded:{digest.hexdigest()}:{data.train_pairs}:{data.test_pairs}:{data.seed}"


def _is_embedded(data: Data) -> bool:
    return data.path is None and data.name == "embedded"


def _located(data: Data) -> tuple[Path | None, list[File], list[str]]:
    return _local(data) if data.path is not None else hub_data.locate(data)


def _local(data: Data) -> tuple[Path, list[File], list[str]]:
    """Return the folder that the file names are relative to, the files to read and the names of those not read."""
    path = Path(str(data.path)).expanduser()
    where = f"data.path={data.path}"
    _check_utf8(str(path), where)
    try:
        if not path.exists():
            raise UserError(
                f"{where}: does not exist (current folder: {Path.cwd()}); expected a data file or a folder of them"
            )
        if path.is_file():
            if ending(path.name) is None:
                raise UserError(f"{where}: unknown ending; expected one of {' '.join(ENDINGS)}")
            title = path.name.removesuffix(ending(path.name) or "")
            if data.subsets is not None and title not in data.subsets:
                raise UserError(
                    f"data.subsets: {data.path} is one file and has no subset folders; set data.subsets=null"
                )
            return path.parent, [File(path.name, title, "unsplit")], []
        found = [file for depth in ("*", "*/*", "*/*/*") for file in path.glob(depth) if file.is_file()]
        for file in found:
            _check_utf8(file.name, where)
        names = [file.relative_to(path).as_posix() for file in found]
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check its permissions") from error
    return path, *layout(names, path.resolve().name, data.subsets, where)


def _check_utf8(name: str, where: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:  # the row report could not name it
        raise UserError(f"{where}: the name {name!r} is not UTF-8; rename it") from error


def _embedded(data: Data) -> Iterator[RawRow]:
    from gpt2_rlhf.embedded import generator

    train_pairs, test_pairs = _embedded_counts(data)
    splits: list[tuple[Split, int, int]] = [
        ("train", train_pairs, 2 * data.seed),  # even and odd, so that no seed trains on another's test pairs
        ("test", test_pairs, 2 * data.seed + 1),
    ]
    for split, count, seed in splits:
        for number, values in enumerate(generator.pairs(count, seed), 1):
            yield RawRow(values, "embedded", split, f"embedded.{split}:{number}")


def _embedded_counts(data: Data) -> tuple[int, int]:
    if data.train_pairs is None or data.test_pairs is None:
        raise UserError(
            "data.train_pairs, data.test_pairs: null; the bundled data is generated without end; set both to a number"
        )
    return data.train_pairs, data.test_pairs
