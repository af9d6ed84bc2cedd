from typing import Any

from gpt2_rlhf.rows.preview import preview
from helpers import tiny

PROMPT = "\n\nHuman: How do I bake bread?\n\nAssistant:"


def row(**changes: str) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "chosen": " Mix flour.",
        "rejected": " No idea.",
        "subset": "helpful",
        "row": "train.jsonl:1",
        **changes,
    }


def shown(**tables: list[dict[str, Any]]) -> str:
    return preview(tiny.tiny_tokenizer(), {"sft": [], "reward": [], "ppo": [], **tables})


def test_sft_marks_the_answer_and_its_eos_as_trained_and_the_prompt_as_context() -> None:
    tokenizer = tiny.tiny_tokenizer()
    context, trained = len(tokenizer(PROMPT)["input_ids"]), len(tokenizer(" Mix flour.")["input_ids"]) + 1
    assert shown(sft=[row()]).splitlines() == [
        f"sft: train.jsonl:1 (helpful), {context + trained} tokens, loss on {trained}",
        f"  context  {context:>5} | \\n\\nHuman: How do I bake bread?\\n\\nAssistant:",
        f"  trained  {trained:>5} |  Mix flour.<|endoftext|>",
    ]


def test_reward_shows_both_answers_to_their_eos() -> None:
    lines = shown(reward=[row()]).splitlines()
    assert [line.split("|", 1)[1].removeprefix(" ") for line in lines[1:]] == [
        # the space that both answers start with is a token of its own in the tiny vocabulary
        "\\n\\nHuman: How do I bake bread?\\n\\nAssistant: ",
        "Mix flour.<|endoftext|>",
        "No idea.<|endoftext|>",
    ]


def test_ppo_shows_the_prompt_without_an_answer() -> None:
    text = shown(ppo=[row()])
    assert text.endswith("Assistant:")
    assert "flour" not in text


def test_control_characters_of_the_data_do_not_reach_the_terminal() -> None:
    text = shown(sft=[row(chosen=" red \x1b[31m")])
    assert "\x1b" not in text
    assert "red \\x1b[31m<|endoftext|>" in text


def test_a_long_answer_keeps_its_end_in_view() -> None:
    text = shown(sft=[row(chosen=" word" * 500)])
    assert " [...] " in text
    assert text.endswith("word<|endoftext|>")
    assert len(text) < 1000


def test_a_few_rows_of_each_table_are_shown() -> None:
    text = shown(sft=[row(row=f"train.jsonl:{n}") for n in range(1, 10)])
    assert [f"train.jsonl:{n}" in text for n in (1, 2, 3)] == [True, True, False]
