import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from gpt2_rlhf import card, config

ESTIMATE = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 7}
MODEL = dict.fromkeys(
    (
        "reward",
        "judge_reward",
        "utility",
        "win_rate_vs_base",
        "win_rate_vs_sft",
        "answer_tokens",
        "eos_rate",
        "distinct_2",
        "kl_to_sft_nats",
        "chosen_perplexity",
    ),
    ESTIMATE,
)
OUTCOMES = dict.fromkeys(("win", "tie", "loss"), ESTIMATE)
PAIR = {
    **dict.fromkeys(("reward", "reward_sd", "judge_reward", "utility")),
    "by_reward": OUTCOMES,
    "by_judge": None,
    "length_matched": None,
}


@pytest.fixture
def records() -> dict[str, Any]:
    libraries = {"trl": "1.12.0"}
    return {
        "sft": {"metrics": {"train_rows": 31}, "libraries": libraries},
        "reward": {"metrics": {"train_rows": 32}, "libraries": libraries},
        "ppo": {"metrics": {"prompts": 33}, "libraries": libraries},
    }


@pytest.fixture
def summary() -> dict[str, Any]:
    return {
        "run": "0123456789ab",
        "command": "make pipeline seed=4",
        "seed": 4,
        "device": "cpu",
        "cpus": 2,
        "finished_at": "2026-11-23 10:00:00 UTC",
        "stages": {"sft": {"directory": "sft-1", "wall_s": 1.0, "work_s": 0.5, "reused": False}},
        "sft": {"heldout_loss_before": ESTIMATE, "heldout_loss_after": ESTIMATE},
        "reward_model": {
            "accuracy": ESTIMATE,
            "baselines": {"chance": 0.5, "longer_answer_wins": ESTIMATE, "best_reachable": 0.84},
            "by_subset": {},
            "calibration": {"bins": [], "expected_error": ESTIMATE},
            "length_bias": dict.fromkeys(("correlation", "accuracy_chosen_longer", "accuracy_chosen_shorter")),
            "pairs": 7,
        },
        "judge": None,
        "ppo": {"forced": [], "stopped": None},
        "seeds": None,
        "evaluation": {
            "prompts": 7,
            "seed": 0,
            "temperature": 1.0,
            "max_new_tokens": 48,
            "models": dict.fromkeys(("base", "sft", "ppo"), MODEL),
            "paired": dict.fromkeys(("sft_minus_base", "ppo_minus_sft", "ppo_minus_base"), PAIR),
            "by_subset": {},
        },
    }


def test_the_card_states_sizes_settings_and_how_to_repeat_the_run(
    records: dict[str, Any], summary: dict[str, Any]
) -> None:
    text = card.render(config.load(["ppo.args.kl_coef=0.123", "sft.peft.r=4"]), records, summary)
    assert "| sft | 31 pairs |" in text
    assert "LoRA rank 4" in text
    assert "| ppo | 33 prompts |" in text
    assert "kl_coef 0.123" in text
    assert "make pipeline seed=4" in text
    assert "{{" not in text


def test_the_card_of_the_bundled_model_says_that_it_is_a_demonstration(
    records: dict[str, Any], summary: dict[str, Any]
) -> None:
    assert "This is a demonstration" in card.render(config.load([]), records, summary)
    hub = card.render(config.load(["experiment=gpt2_hh_500"]), records, summary)
    assert "This is a demonstration" not in hub
    assert "base_model: openai-community/gpt2\n" in hub
    assert "- Anthropic/hh-rlhf\n" in hub


def test_the_card_names_no_path_of_the_machine(records: dict[str, Any], summary: dict[str, Any]) -> None:
    overrides = ["model.name=/home/me/my-model", "data=hh_rlhf", "data.path=/home/me/pairs.jsonl"]
    text = card.render(config.load(overrides), records, summary)
    assert "/home/me" not in text
    assert "pairs.jsonl" in text


def test_a_field_that_nobody_fills_is_an_error(
    records: dict[str, Any], summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "CARD.md").write_text("{{ nobody_fills_this }}")
    monkeypatch.setattr(card, "TEMPLATE", tmp_path / "CARD.md")
    with pytest.raises(jinja2.UndefinedError):
        card.render(config.load([]), records, json.loads(json.dumps(summary)))
