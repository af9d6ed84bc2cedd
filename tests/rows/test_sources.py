import dataclasses
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.embedded import generator
from gpt2_rlhf.rows import sources

EMBEDDED = Data(
    name="embedded",
    revision=None,
    path=None,
    subsets=None,
    train_pairs=5,
    test_pairs=3,
    shares={"sft": 0.3, "reward": 0.4, "judge": 0.0, "ppo": 0.3},
    disjoint=True,
    template=None,
    max_prompt_tokens=100,
    max_answer_tokens=50,
    seed=0,
    utility=None,
)


def at(path: Path, subsets: list[str] | None = None) -> Data:
    return dataclasses.replace(EMBEDDED, name="unused/unused", path=str(path), subsets=subsets)


def write_gz(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode(), mtime=0))


def row(answer: str) -> dict[str, str]:
    return {"prompt": "Hi", "chosen": answer, "rejected": "no"}


@pytest.fixture
def two_subsets(tmp_path: Path) -> Path:
    root = tmp_path / "hh"
    for subset in ("helpful", "harmless"):
        write_gz(root / subset / "train.jsonl.gz", [row(f"{subset} 1"), row(f"{subset} 2")])
        write_gz(root / subset / "test.jsonl.gz", [row(f"{subset} 3")])
    return root


def test_rows_of_a_folder_are_named_by_file_and_line_and_know_their_subset_and_split(two_subsets: Path) -> None:
    sources.check(at(two_subsets))
    read = list(sources.read(at(two_subsets)))
    assert [(raw.name, raw.subset, raw.split) for raw in read] == [
        ("harmless/test.jsonl.gz:1", "harmless", "test"),
        ("harmless/train.jsonl.gz:1", "harmless", "train"),
        ("harmless/train.jsonl.gz:2", "harmless", "train"),
        ("helpful/test.jsonl.gz:1", "helpful", "test"),
        ("helpful/train.jsonl.gz:1", "helpful", "train"),
        ("helpful/train.jsonl.gz:2", "helpful", "train"),
    ]
    assert read[2].values == row("harmless 2")


def test_a_subset_folder_as_the_path_is_that_subset(two_subsets: Path) -> None:
    read = list(sources.read(at(two_subsets / "helpful")))
    assert {raw.subset for raw in read} == {"helpful"}
    assert read[0].name == "test.jsonl.gz:1"


def test_one_file_is_an_unsplit_set(two_subsets: Path) -> None:
    read = list(sources.read(at(two_subsets / "helpful" / "train.jsonl.gz")))
    assert [(raw.name, raw.split) for raw in read] == [("train.jsonl.gz:1", "unsplit"), ("train.jsonl.gz:2", "unsplit")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", r"data\.path=.*missing\.jsonl: does not exist .*; expected a data file or a folder"),
        ("pairs.txt", r"data\.path=.*pairs\.txt: unknown ending; expected one of \.jsonl"),
        ("empty", r"data\.path=.*empty has no data files"),
        ("pipe", r"data\.path=.*pipe: is neither a file nor a folder; expected a data file or a folder of them"),
        ("columns.csv", r"columns\.csv: has the columns text; expected chosen and rejected"),
        ("caf\udce9.jsonl", r"the name '.*caf\\udce9\.jsonl' is not UTF-8; rename it"),
        ("latin", r"the name 'caf\\udce9\.jsonl' is not UTF-8; rename it"),
        ("n" * 300, r"cannot be read \(File name too long\)"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused_before_reading(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "caf\udce9.jsonl").touch()
    (tmp_path / "pairs.txt").write_text("x")
    (tmp_path / "columns.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match=message):
        sources.check(at(tmp_path / name))


def test_a_wrong_file_in_any_subset_is_found_by_the_check_and_by_reading(two_subsets: Path) -> None:
    write_gz(two_subsets / "helpful" / "test.jsonl.gz", [{"question": "x"}])
    for use in (sources.check, lambda data: list(sources.read(data))):
        with pytest.raises(UserError, match=r"helpful/test\.jsonl\.gz: has the columns question"):
            use(at(two_subsets))


def test_subsets_of_one_file_are_refused_and_the_remedy_is_named(two_subsets: Path) -> None:
    with pytest.raises(UserError, match=r"is one file and has no subset folders; set data\.subsets=null"):
        sources.check(at(two_subsets / "helpful" / "train.jsonl.gz", subsets=["helpful"]))


def test_the_fingerprint_of_local_files_follows_their_bytes_and_not_their_place(two_subsets: Path) -> None:
    before = sources.fingerprint(at(two_subsets))
    assert sources.fingerprint(at(two_subsets, subsets=["helpful", "harmless"])) == before
    assert sources.fingerprint(at(two_subsets, subsets=["helpful"])) != before
    moved = two_subsets.rename(two_subsets.parent / "elsewhere")
    assert sources.fingerprint(at(moved)) == before
    (moved / "README.md").write_text("no data")
    assert sources.fingerprint(at(moved)) == before
    write_gz(moved / "helpful" / "test.jsonl.gz", [row("other")])
    assert sources.fingerprint(at(moved)) != before


def test_the_fingerprint_of_a_hub_data_set_follows_commit_and_subsets() -> None:
    hub = dataclasses.replace(EMBEDDED, name="owner/pairs", revision="a" * 40)
    other_commit = dataclasses.replace(hub, revision="b" * 40)
    one_subset = dataclasses.replace(hub, subsets=["helpful"])
    assert len({sources.fingerprint(data) for data in (hub, other_commit, one_subset)}) == 3


def test_the_fingerprint_of_generated_pairs_follows_counts_and_seed() -> None:
    others = [dataclasses.replace(EMBEDDED, **{field: 9}) for field in ("train_pairs", "test_pairs", "seed")]
    assert len({sources.fingerprint(data) for data in (EMBEDDED, *others)}) == 4


def test_generated_pairs_have_the_number_in_the_settings_and_the_two_splits_differ() -> None:
    read = list(sources.read(EMBEDDED))
    assert [raw.name for raw in read] == [f"embedded.train:{n}" for n in range(1, 6)] + [
        f"embedded.test:{n}" for n in range(1, 4)
    ]
    assert read[0].values != read[5].values
    assert read == list(sources.read(EMBEDDED))


def test_no_seed_trains_on_the_test_pairs_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[str, set[int]] = {"train": set(), "test": set()}

    def note_seed(count: int, seed: int) -> list[dict[str, str]]:
        seeds["train" if count == EMBEDDED.train_pairs else "test"].add(seed)
        return []

    monkeypatch.setattr(generator, "pairs", note_seed)
    for seed in random.Random(0).sample(range(1000), 100):
        list(sources.read(dataclasses.replace(EMBEDDED, seed=seed)))
    assert len(seeds["train"]) == len(seeds["test"]) == 100
    assert not seeds["train"] & seeds["test"]


@pytest.mark.parametrize("field", ["train_pairs", "test_pairs"])
def test_generated_pairs_without_a_number_are_refused(field: str) -> None:
    with pytest.raises(UserError, match="the bundled data is generated without end; set both to a number"):
        sources.check(dataclasses.replace(EMBEDDED, **{field: None}))


def test_the_check_imports_nothing_heavy(two_subsets: Path) -> None:
    code = (
        "import sys\n"
        "from gpt2_rlhf.rows import sources\n"
        "from gpt2_rlhf.config.settings import Data\n"
        f"for data in [{at(two_subsets)!r}, {EMBEDDED!r}]:\n"
        "    sources.check(data), sources.fingerprint(data)\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'trl', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
