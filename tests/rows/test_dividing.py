from collections import Counter
from dataclasses import replace

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import TABLES
from gpt2_rlhf.rows.cleaning import Measured
from gpt2_rlhf.rows.conversations import conversations
from gpt2_rlhf.rows.dividing import divide
from gpt2_rlhf.rows.transcripts import Pair
from helpers.pairs import questions, with_settings


def measured(prompt: str, row: str = "train.jsonl:1", cut_to: str | None = None) -> Measured:
    pair = Pair(cut_to or prompt, " Yes.", " No.", "mine", row, None)
    return Measured(pair, conversations([prompt])[prompt], 1, 1, 1)


def pairs(*prompts: str) -> list[Measured]:
    return [measured(prompt, f"train.jsonl:{number}") for number, prompt in enumerate(prompts, 1)]


TEST = pairs("Asked in the test alone?")


def prompts_of(rows: list[Measured]) -> set[str]:
    return {row.pair.prompt for row in rows}


def depths(number: int) -> list[str]:
    """The prompts of one conversation, at a depth of 1 to 3 turns."""
    turns = [f"\n\nHuman: Question {number}?\n\nAssistant:", " Yes.\n\nHuman: Why?\n\nAssistant:"]
    return [turns[0] + turns[1] * deeper for deeper in range(3)]


def test_the_first_test_rows_are_drawn_from_all_subsets() -> None:
    subsets = ("harmless", "helpful", "online", "sampled")
    test = [measured(prompt) for prompt in questions(400)]  # in the order of their files
    for number, row in enumerate(test):
        test[number] = replace(row, pair=replace(row.pair, subset=subsets[number // 100]))
    first = Counter(row.pair.subset for row in divide(pairs(*questions(40)), test, with_settings())["test"][:80])
    assert all(10 <= first[subset] <= 30 for subset in subsets)  # 20 are expected, with a deviation below 4


def test_no_conversation_is_in_two_tables_at_any_depth() -> None:
    tables = divide(pairs(*(prompt for n in range(40) for prompt in depths(n))), TEST, with_settings())
    openings = [{prompt.partition("?")[0] for prompt in prompts_of(tables[name])} for name in ("sft", "reward", "ppo")]
    assert sum(map(len, openings)) == len(set().union(*openings))
    assert [len(tables[name]) for name in ("sft", "reward", "ppo")] == [36, 48, 36]  # shares of 120 pairs


def test_two_conversations_with_one_prompt_once_cut_stay_together() -> None:
    rows = [
        measured(prompt, cut_to=f"The same last turn {number // 2}?" if prompt == depths(number)[2] else None)
        for number in range(60)
        for prompt in depths(number)
    ]
    assert len({row.conversation for row in rows}) == 60
    tables = divide(rows, TEST, with_settings())
    table_of = {row.pair.prompt: name for name in ("sft", "reward", "ppo") for row in tables[name]}
    assert sum(len(prompts_of(tables[name])) for name in ("sft", "reward", "ppo")) == len(table_of)
    for number in range(60):
        cut = f"The same last turn {number // 2}?"
        assert len({table_of[prompt] for prompt in (*depths(number)[:2], cut) if prompt in table_of}) <= 1


def test_every_table_gets_its_rows_to_the_pair_while_there_are_enough() -> None:
    settings = with_settings(train_pairs=60, shares=dict.fromkeys(("sft", "reward", "ppo"), 1 / 3) | {"judge": 0.0})
    tables = divide(pairs(*(prompt for n in range(80) for prompt in depths(n) * 2)), TEST, settings)
    assert [len(tables[name]) for name in ("sft", "reward", "ppo")] == [20, 20, 20]
    assert len(prompts_of(tables["ppo"])) == 20


def test_stages_get_their_shares_of_the_pairs_and_never_one_prompt_twice() -> None:
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


def test_a_stage_left_without_pairs_is_refused() -> None:
    message = r"2 training pairs leave none for reward \(share 0\.4\).*data\.disjoint=false"
    with pytest.raises(UserError, match=message) as refused:
        divide(pairs("Bread?", "Tea?"), TEST, with_settings())
    assert "\n" not in str(refused.value)
