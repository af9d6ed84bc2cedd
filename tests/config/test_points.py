import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.points import points


def test_lists_are_multiplied_and_the_last_changes_fastest() -> None:
    found = points(["ppo.args.kl_coef=0.05,0.1", "force=true", "seed=0,1"])
    assert [one.label for one in found] == [
        "kl_coef=0.05 seed=0",
        "kl_coef=0.05 seed=1",
        "kl_coef=0.1 seed=0",
        "kl_coef=0.1 seed=1",
    ]
    assert found[1].overrides == ("ppo.args.kl_coef=0.05", "force=true", "seed=1")
    assert found[1].varied == ("ppo.args.kl_coef=0.05", "seed=1")


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("seed=range(1,4)", ["1", "2", "3"]),
        ("seed=choice(5,7)", ["5", "7"]),
        ("model=embedded,gpt2", ["embedded", "gpt2"]),
        ("ppo.reward.function=null,mine:score", ["null", "mine:score"]),
        ("ppo.seeds=[0,1],[2,3]", ["[0,1]", "[2,3]"]),
    ],
)
def test_every_kind_of_list_that_hydra_reads_is_expanded(override: str, values: list[str]) -> None:
    key = override.partition("=")[0]
    assert [one.varied for one in points([override])] == [(f"{key}={value}",) for value in values]


def test_a_list_as_one_value_and_a_path_that_hydra_cannot_read_are_no_lists() -> None:
    (first, second) = points(["ppo.seeds=[0,1]", "data.path=/tmp/a (b).jsonl", "seed=0,1"])
    assert first.overrides[:2] == second.overrides[:2] == ("ppo.seeds=[0,1]", "data.path=/tmp/a (b).jsonl")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["seed=1"], "no setting has several values"),
        (["output_dir=a,b"], "output_dir is the same for all points"),
        (["sweep.parallel=1,2"], "sweep.parallel is the same for all points"),
        (["publish.repo_id=a/b,c/d"], "publish.repo_id is the same for all points"),
        (["seed=0,1", "seed=2"], "seed is set twice, so that its points would be alike; set it once"),
        (["seed=0,1,0"], "two points would be alike; list each value once"),
        (["model=glob(*)"], r"glob\(\) is not read"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        points(overrides)
