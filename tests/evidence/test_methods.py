"""What a run by RLOO or DPO says of itself: its own name, no words that are true of PPO alone, a judge at chance."""

import re
from typing import Any

import pytest

from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import card, comparison, results, summary, terminal, verdict
from gpt2_rlhf.evidence.summary import spread
from helpers import card_run

LABELS = {"rloo": "RLOO", "dpo": "DPO"}


@pytest.fixture(params=LABELS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def records(method: str) -> dict[str, Any]:
    return card_run.records([f"method={method}"])


def found(records: dict[str, Any]) -> dict[str, Any]:
    return summary.findings(records, None)


def test_the_card_is_of_the_method_and_not_of_ppo(method: str, records: dict[str, Any]) -> None:
    settings = compose.load([f"method={method}"]).settings
    for folder, stage in card.folders(method).items():
        text = card.render(settings, card_run.run(records), folder).partition("## Citation")[0]
        own_tag = {"sft": "sft", "reward": "reward-model"}.get(stage, method)
        assert re.search(rf"^- {own_tag}$", text, re.MULTILINE)
        assert LABELS[method] in text
        assert "PPO" not in text


def test_dpo_is_not_said_to_be_trained_on_the_reward_model() -> None:
    settings = compose.load(["method=dpo"]).settings
    for folder in card.folders("dpo"):
        text = " ".join(card.render(settings, card_run.run(card_run.records(["method=dpo"])), folder).split())
        assert "DPO, which raises" not in text
        assert "DPO from SFT with that reward model" not in text


def test_the_words_and_tables_on_a_terminal_are_of_the_method(method: str, records: dict[str, Any]) -> None:
    known = {**found(records), "run": "0", "seed": 3, "stages": {}}
    words = " ".join([verdict.verdict(known), *verdict.notes(known), terminal.tables(known)])
    assert LABELS[method] in words
    assert "PPO" not in words.partition("In brackets")[0]
    assert f"{method}_minus_sft" in results.paired(known).columns


def test_a_judge_at_chance_decides_nothing(method: str, records: dict[str, Any]) -> None:
    keys = [one.key for one in comparison.usable_measures(found(records))]
    assert keys == ["utility", "judge_reward", "reward"]
    records["judge"]["metrics"]["accuracy"] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 50}
    assert "judge_reward" not in [one.key for one in comparison.usable_measures(found(records))]


def test_the_seeds_of_every_method_have_a_spread(method: str, records: dict[str, Any]) -> None:
    settings = compose.load([f"method={method}", "ppo.seeds=[3]"]).settings
    over_seeds = spread(settings.ppo, [records])
    assert over_seeds is not None
    reward = records["evaluate"]["metrics"]["models"][method]["reward"]["mean"]
    assert over_seeds["over_seeds"]["reward"]["mean"] == reward
    assert over_seeds["by_seed"][0]["seed"] == 3
