import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.layout import File, layout

HH = [
    "README.md",
    "harmless-base/test.jsonl.gz",
    "harmless-base/train.jsonl.gz",
    "helpful-base/test.jsonl.gz",
    "helpful-base/train.jsonl.gz",
    "red-team-attempts/red_team_attempts.jsonl.gz",
]


def test_every_folder_with_training_rows_is_a_subset_and_others_are_not_read() -> None:
    assert layout(HH, "hh-rlhf", None, "here") == [
        File("harmless-base/test.jsonl.gz", "harmless-base", "test"),
        File("harmless-base/train.jsonl.gz", "harmless-base", "train"),
        File("helpful-base/test.jsonl.gz", "helpful-base", "test"),
        File("helpful-base/train.jsonl.gz", "helpful-base", "train"),
    ]


def test_named_subsets_alone_are_read() -> None:
    assert {file.subset for file in layout(HH, "hh-rlhf", ["helpful-base"], "here")} == {"helpful-base"}


def test_a_missing_subset_is_named_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match=r"has no helpful-bass; it has harmless-base, helpful-base"):
        layout(HH, "hh-rlhf", ["helpful-bass"], "here")


@pytest.mark.parametrize("subsets", [None, ["harmless-base"], ["harmless-base", "helpful-base"]])
def test_a_folder_that_is_itself_a_subset_is_read_whole(subsets: list[str] | None) -> None:
    assert layout(["test.jsonl.gz", "train.jsonl.gz"], "harmless-base", subsets, "here") == [
        File("test.jsonl.gz", "harmless-base", "test"),
        File("train.jsonl.gz", "harmless-base", "train"),
    ]


def test_shards_in_a_data_folder_take_the_name_of_the_data_set() -> None:
    names = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002-ab12.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    files = layout([*names, "dataset_infos.json"], "ultrafeedback", None, "here")
    assert [(file.subset, file.split) for file in files] == [
        ("ultrafeedback", "test"),
        ("ultrafeedback", "train"),
        ("ultrafeedback", "train"),
    ]


def test_a_subset_without_a_test_file_is_unsplit() -> None:
    names = ["a/train.csv", "a/test.csv", "b/train.csv"]
    assert [(file.name, file.split) for file in layout(names, "both", None, "here")] == [
        ("a/test.csv", "test"),
        ("a/train.csv", "train"),
        ("b/train.csv", "unsplit"),
    ]


def test_loose_files_are_one_set_of_rows() -> None:
    assert layout(["more.jsonl", "pairs.jsonl", "notes.txt", ".pairs.jsonl"], "mine", None, "here") == [
        File("more.jsonl", "mine", "unsplit"),
        File("pairs.jsonl", "mine", "unsplit"),
    ]


def test_loose_files_beside_a_test_file_are_training_rows() -> None:
    assert [file.split for file in layout(["pairs.jsonl", "test.jsonl"], "mine", None, "here")] == ["train", "test"]


@pytest.mark.parametrize("names", [[], ["README.md"], ["deep/down/train.jsonl"]])
def test_a_folder_without_data_files_is_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"here has no data files; expected train\.\* and test\.\*"):
        layout(names, "mine", None, "here")


def test_test_files_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"has test files only \(test\.csv\)"):
        layout(["test.csv"], "mine", None, "here")
