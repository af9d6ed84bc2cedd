import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.rows.layout import File, Split, layout

HH = [
    "README.md",
    "harmless-base/test.jsonl.gz",
    "harmless-base/train.jsonl.gz",
    "helpful-base/test.jsonl.gz",
    "helpful-base/train.jsonl.gz",
    "red-team-attempts/red_team_attempts.jsonl.gz",
]


def test_every_folder_with_training_rows_is_a_subset_and_others_are_not_read() -> None:
    files, not_read = layout(HH, "hh-rlhf", None, "here")
    assert not_read == ["red-team-attempts/red_team_attempts.jsonl.gz"]
    assert files == [
        File("harmless-base/test.jsonl.gz", "harmless-base", "test"),
        File("harmless-base/train.jsonl.gz", "harmless-base", "train"),
        File("helpful-base/test.jsonl.gz", "helpful-base", "test"),
        File("helpful-base/train.jsonl.gz", "helpful-base", "train"),
    ]


def test_named_subsets_alone_are_read() -> None:
    assert {file.subset for file in layout(HH, "hh-rlhf", ["helpful-base"], "here")[0]} == {"helpful-base"}


def test_a_missing_subset_is_named_with_those_that_are_there() -> None:
    with pytest.raises(UserError, match=r"has no helpful-bass; it has harmless-base, helpful-base"):
        layout(HH, "hh-rlhf", ["helpful-bass"], "here")


@pytest.mark.parametrize("subsets", [None, ["harmless-base"], ["harmless-base", "helpful-base"]])
def test_a_folder_that_is_itself_a_subset_is_read_whole(subsets: list[str] | None) -> None:
    assert layout(["test.jsonl.gz", "train.jsonl.gz"], "harmless-base", subsets, "here")[0] == [
        File("test.jsonl.gz", "harmless-base", "test"),
        File("train.jsonl.gz", "harmless-base", "train"),
    ]


def test_shards_in_a_data_folder_take_the_name_of_the_data_set() -> None:
    names = [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002-ab12.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    files, not_read = layout([*names, "dataset_infos.json"], "ultrafeedback", None, "here")
    assert [(file.subset, file.split) for file in files] == [
        ("ultrafeedback", "test"),
        ("ultrafeedback", "train"),
        ("ultrafeedback", "train"),
    ]
    assert not_read == []


def test_a_subset_without_a_test_file_is_unsplit() -> None:
    names = ["a/train.csv", "a/test.csv", "b/train.csv"]
    assert [(file.name, file.split) for file in layout(names, "both", None, "here")[0]] == [
        ("a/test.csv", "test"),
        ("a/train.csv", "train"),
        ("b/train.csv", "unsplit"),
    ]


def test_loose_files_are_one_set_of_rows() -> None:
    assert layout(["more.jsonl", "pairs.jsonl", "notes.txt", ".pairs.jsonl"], "mine", None, "here")[0] == [
        File("more.jsonl", "mine", "unsplit"),
        File("pairs.jsonl", "mine", "unsplit"),
    ]


def test_loose_files_beside_a_test_file_are_training_rows() -> None:
    assert [file.split for file in layout(["pairs.jsonl", "test.jsonl"], "mine", None, "here")[0]] == ["train", "test"]


@pytest.mark.parametrize("names", [[], ["README.md"], ["deep/down/train.jsonl"]])
def test_a_folder_without_data_files_is_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match=r"here has no data files; expected train\.\* and test\.\*"):
        layout(names, "mine", None, "here")


def test_test_files_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"has test files only \(test\.csv\)"):
        layout(["test.csv"], "mine", None, "here")


def splits(*names: str) -> dict[str, Split]:
    return {file.name: file.split for file in layout(names, "mine", None, "here")[0]}


@pytest.mark.parametrize("word", ["test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"])
@pytest.mark.parametrize("name", ["{}.jsonl", "{}_a-00000-of-00001.parquet", "pairs-{}.csv", "{}1.JSONL", "{}/a.csv"])
def test_a_file_or_folder_with_a_word_for_test_rows_is_never_trained_on(name: str, word: str) -> None:
    train, test = name.format("train"), name.format(word)
    assert splits(train, test) == {train: "train", test: "test"}
    assert splits(train, name.format(word.upper())) == {train: "train", name.format(word.upper()): "test"}


def test_a_word_inside_another_word_is_no_split() -> None:
    assert splits("latest.jsonl", "pretrain.jsonl", "evaluated.jsonl") == dict.fromkeys(
        ("evaluated.jsonl", "latest.jsonl", "pretrain.jsonl"), "unsplit"
    )


def test_the_name_of_the_file_wins_over_that_of_its_folder() -> None:
    names = ["test/train.jsonl", "test/test.jsonl"]
    assert layout(names, "mine", None, "here")[0] == [
        File("test/test.jsonl", "test", "test"),
        File("test/train.jsonl", "test", "train"),
    ]


def test_folders_named_after_splits_belong_to_the_subset_above_them() -> None:
    names = ["helpful/train/0.parquet", "helpful/test/0.parquet", "data/train/0.parquet"]
    assert layout(names[:2], "mine", None, "here")[0] == [
        File("helpful/test/0.parquet", "helpful", "test"),
        File("helpful/train/0.parquet", "helpful", "train"),
    ]
    assert layout(names[2:], "mine", None, "here")[0] == [File("data/train/0.parquet", "mine", "unsplit")]


def test_the_metadata_of_a_saved_data_set_is_no_data_file() -> None:
    names = ["train/data-00000-of-00001.arrow", "train/state.json", "train/dataset_info.json", "dataset_dict.json"]
    assert layout(names, "mine", None, "here") == ([File(names[0], "mine", "unsplit")], [])


def test_files_that_are_not_read_are_named() -> None:
    names = ["train.jsonl", "more.jsonl", "test.tsv", "a/b/train.csv", "README.md", ".train.jsonl", ".git/train.csv"]
    files, not_read = layout(names, "mine", None, "here")
    assert [file.name for file in files] == ["train.jsonl"]
    assert not_read == ["a/b/train.csv", "more.jsonl", "test.tsv"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train-00000-of-00003-ab.parquet", "train-00002-of-00003-ab.parquet"],
            r"lacks 1 of the 3 shards of train, .* 00001-of",
        ),
        (["data/train-00001-of-00002.parquet"], r"lacks 1 of the 2 shards of data/train, the first is 00000-of-00002"),
        (["train.csv", "test-00000-of-00002.csv"], r"lacks 1 of the 2 shards of test, the first is 00001-of-00002"),
        (["data-00000-of-00002.arrow"], r"lacks 1 of the 2 shards of data, the first is 00001-of-00002"),
        (["a-1-of-3.csv", "a-3-of-3.csv"], r"lacks 1 of the 3 shards of a, the first is 2-of-3"),
    ],
)
def test_a_missing_shard_is_refused_and_named(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        layout(names, "mine", None, "here")


def test_shards_that_are_counted_from_1_are_all_there() -> None:
    names = [f"train-{number}-of-3.jsonl" for number in (1, 2, 3)]
    assert [file.name for file in layout(names, "mine", None, "here")[0]] == names
