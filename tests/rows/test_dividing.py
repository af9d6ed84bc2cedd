import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import TABLES
from gpt2_rlhf.rows.dividing import divide
from gpt2_rlhf.rows.transcripts import Pair
from helpers.pairs import questions, with_settings

TEST = [Pair("Asked in the test alone?", " Yes.", " No.", "mine", "test.jsonl:1", None)]


def pairs(*prompts: str) -> list[Pair]:
    return [
        Pair(prompt, " Yes.", " No.", "mine", f"train.jsonl:{number}", None) for number, prompt in enumerate(prompts, 1)
    ]


def prompts_of(rows: list[Pair]) -> set[str]:
    return {row.prompt for row in rows}


def test_stages_get_their_shares_of_the_prompts_and_never_one_prompt_twice() -> None:
    settings = with_settings(shares={"sft": 0.3, "reward": 0.2, "judge": 0.2, "ppo": 0.3})
    tables = divide(pairs(*questions(100) * 2), TEST, settings)
    prompts = {name: prompts_of(tables[name]) for name in TABLES}
    assert {name: len(found) for name, found in prompts.items()} == {"sft": 30, "reward": 20, "judge": 20, "ppo": 30}
    assert len(set().union(*prompts.values())) == 100
    assert {name: len(tables[name]) for name in TABLES} == {"sft": 60, "reward": 40, "judge": 40, "ppo": 30}


def test_shares_below_one_leave_prompts_unused_and_a_share_of_0_makes_no_table() -> None:
    settings = with_settings(shares={"sft": 0.1, "reward": 0.2, "judge": 0.0, "ppo": 0.1})
    tables = divide(pairs(*questions(50)), TEST, settings)
    assert {name: len(rows) for name, rows in tables.items()} == {"sft": 5, "reward": 10, "ppo": 5, "test": 1}


def test_without_disjoint_prompts_every_stage_gets_all_pairs_and_ppo_each_prompt_once() -> None:
    tables = divide(pairs(*questions(10) * 2), TEST, with_settings(disjoint=False))
    assert [len(tables[name]) for name in ("sft", "reward", "ppo")] == [20, 20, 10]
    assert "judge" not in tables
    assert prompts_of(tables["ppo"]) == prompts_of(tables["sft"])


@pytest.mark.parametrize("limit", [1, 7, 20, 21])
def test_a_limit_on_training_pairs_is_met_to_the_pair(limit: int) -> None:
    tables = divide(pairs(*questions(10) * 2), TEST, with_settings(disjoint=False, train_pairs=limit))
    assert len(tables["sft"]) == min(limit, 20)


def test_a_limit_on_test_pairs_is_met_to_the_pair() -> None:
    assert len(divide(pairs(*questions(10)), TEST * 10, with_settings(test_pairs=4))["test"]) == 4


def test_the_seed_decides_the_division() -> None:
    first, again, other = (divide(pairs(*questions(100)), TEST, with_settings(seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert prompts_of(first["sft"]) != prompts_of(other["sft"])


def test_a_stage_left_without_prompts_is_refused() -> None:
    message = r"2 training prompts leave none for reward \(share 0\.4\).*data\.disjoint=false"
    with pytest.raises(UserError, match=message) as refused:
        divide(pairs("Bread?", "Tea?"), TEST, with_settings())
    assert "\n" not in str(refused.value)
