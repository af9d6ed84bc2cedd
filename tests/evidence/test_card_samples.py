import copy
from typing import Any

import pytest

from gpt2_rlhf.config import metrics
from gpt2_rlhf.config.metrics import Metric
from gpt2_rlhf.evidence import card_samples
from helpers import card_run


def with_changes(key: str, *changes: float) -> list[dict[str, Any]]:
    """Held-out samples whose measure changes so from SFT to PPO, and whose reward changes by the opposite."""
    made = [copy.deepcopy(card_run.samples()[-1]) for _ in changes]
    for place, (one, change) in enumerate(zip(made, changes, strict=True)):
        one["prompt"] = f"prompt {place}"
        one["answers"]["sft"] |= {"reward": 0.0, key: 1.0}
        one["answers"]["ppo"] |= {"reward": -change, key: 1.0 + change}
    return made


@pytest.mark.parametrize(("by", "sign"), [(metrics.REWARD, 1), (metrics.UTILITY, -1)])
def test_the_rule_takes_the_largest_gain_the_median_and_the_largest_loss(by: Metric, sign: int) -> None:
    chosen = card_samples.chosen(card_run.samples(), by)
    assert [(name, line["prompt"].split("\n\n")[1]) for name, line in chosen] == [
        ("Largest gain", f"Human: change {'+2' if sign > 0 else '-3'}"),
        ("Median", "Human: change +0"),
        ("Largest loss", f"Human: change {'-3' if sign > 0 else '+2'}"),
    ]


def test_a_gain_is_not_called_a_loss_nor_a_loss_a_gain() -> None:
    def names(*changes: float) -> list[str]:
        return [name for name, _ in card_samples.chosen(with_changes("utility", *changes), metrics.UTILITY)]

    assert names(3.0, 1.0, 2.0) == ["Largest gain", "Median", "Smallest gain"]
    assert names(-3.0, -1.0, -2.0) == ["Smallest loss", "Median", "Largest loss"]


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_of_few_prompts_none_is_shown_twice(count: int, shown: int) -> None:
    chosen = card_samples.chosen(card_run.samples()[: 2 + count], metrics.REWARD)
    prompts = [line["prompt"] for _, line in chosen]
    assert len(prompts) == len(set(prompts)) == shown


def test_a_sample_has_the_change_the_scores_and_how_each_answer_ended() -> None:
    text = card_samples.markdown(card_run.samples(), metrics.REWARD, 2.0)
    assert (
        "### Largest loss: reward -3.00 (-1.50 SD) from SFT to PPO\n\n```text\nHuman: change -3\n\nAssistant:\n```"
    ) in text
    assert "base (utility 0.50, reward -0.50, 4 tokens, not ended):\n\n```text\nbase on change -3\n```" in text
    assert "PPO (utility 2.75, reward -2.75, 4 tokens, ended):\n\n```text\nppo on change -3\n```" in text
    known = with_changes("utility", 2.0)
    known[0]["answers"]["ppo"]["judge_reward"] = 1.5
    text = card_samples.markdown(known, metrics.UTILITY, 4.0)
    assert "### Largest gain: utility +2.00, reward -2.00 (-0.50 SD) from SFT to PPO" in text
    assert "PPO (utility 3.00, judge 1.50, reward -2.00, 4 tokens, ended):" in text


def test_held_out_samples_are_folded_under_a_warning_and_the_examples_are_not() -> None:
    text = card_samples.markdown(card_run.samples(), metrics.REWARD, 2.0)
    fold = text.index("<details>\n<summary>Samples on held-out prompts. They are not filtered")
    assert text.index("### Example 2") < fold < text.index("### Largest gain")
    assert text.endswith("```\n\n</details>")  # Markdown inside of HTML needs the empty lines


def test_a_change_that_rounds_to_zero_has_no_minus_sign() -> None:
    line = card_run.samples()[2]
    line["answers"]["ppo"]["reward"] = line["answers"]["sft"]["reward"] - 0.004
    assert "reward +0.00 (+0.00 SD) from" in card_samples.markdown([line], metrics.REWARD, 2.0)


@pytest.mark.parametrize(("text", "fence"), [("a ``` b", "````"), ("`````", "``````"), ("`a`", "```"), ("", "```")])
def test_a_fence_is_longer_than_any_run_of_backticks_in_the_text(text: str, fence: str) -> None:
    assert card_samples.quoted(text) == f"{fence}text\n{text}\n{fence}"


def test_a_long_text_is_cut_and_says_so() -> None:
    quoted = card_samples.quoted("x" * 601)
    assert quoted.startswith(f"```text\n{'x' * 600}\n```\n")
    assert quoted.endswith("(cut after 600 of 601 characters)")
    assert "cut" not in card_samples.quoted("x" * 600)


def test_control_characters_of_a_model_do_not_reach_the_file() -> None:
    assert card_samples.quoted("a\x00b\x1b[1m\tc\nd") == "```text\na\\x00b\\x1b[1m\tc\nd\n```"
