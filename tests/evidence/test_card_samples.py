from typing import Any

import pytest

from gpt2_rlhf.evidence import card_samples
from helpers import card_run


def test_the_rule_takes_the_largest_rise_the_median_and_the_two_lowest() -> None:
    chosen = card_samples.chosen(card_run.samples())
    assert [(heading, line["prompt"].split("\n\n")[1]) for heading, line in chosen] == [
        ("Example 1", "Human: example 1"),
        ("Example 2", "Human: example 2"),
        ("Held out, largest rise", "Human: change +2"),
        ("Held out, median", "Human: change +0"),
        ("Held out, lowest", "Human: change -3"),
        ("Held out, second lowest", "Human: change -1"),
    ]


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4)])
def test_of_few_prompts_none_is_shown_twice(count: int, shown: int) -> None:
    chosen = card_samples.chosen(card_run.samples()[: 2 + count])
    prompts = [line["prompt"] for _, line in chosen]
    assert len(prompts) == len(set(prompts)) == 2 + shown


def test_a_sample_has_the_change_the_scores_and_how_each_answer_ended() -> None:
    text = card_samples.markdown(card_run.samples(), 2.0)
    assert (
        "### Held out, lowest: reward -3.00 (-1.50 SD) from SFT to PPO\n\n```text\nHuman: change -3\n\nAssistant:\n```"
        in text
    )
    assert "base (reward -0.50, not ended):\n\n```text\nbase on change -3\n```" in text
    assert "PPO (reward -2.75, ended):\n\n```text\nppo on change -3\n```" in text
    known: list[dict[str, Any]] = card_run.samples()
    known[0]["answers"]["ppo"] |= {"judge_reward": 1.5, "utility": -2.0}
    assert "PPO (utility -2.00, judge's reward 1.50, reward 0.25, ended):" in card_samples.markdown(known, 2.0)


def test_held_out_samples_are_folded_under_a_warning_and_the_examples_are_not() -> None:
    text = card_samples.markdown(card_run.samples(), 2.0)
    fold = text.index("<details>\n<summary>Samples on held-out prompts. They are not filtered")
    assert text.index("### Example 2") < fold < text.index("### Held out, largest rise")
    assert text.endswith("```\n\n</details>")  # Markdown inside of HTML needs the empty lines


def test_a_change_that_rounds_to_zero_has_no_minus_sign() -> None:
    line = card_run.samples()[2]
    line["answers"]["ppo"]["reward"] = line["answers"]["sft"]["reward"] - 0.004
    assert "largest rise: reward +0.00 (+0.00 SD) from" in card_samples.markdown([line], 2.0)


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
