"""A small source of preference pairs: its settings, its rows, and a count of words for a count of tokens."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.rows.cleaning import Rules
from gpt2_rlhf.rows.layout import Split
from gpt2_rlhf.rows.sources import RawRow

PAIRS = Data(
    name="unused/unused",
    revision=None,
    path="pairs",
    subsets=None,
    train_pairs=None,
    test_pairs=None,
    shares={"sft": 0.3, "reward": 0.4, "judge": 0.0, "ppo": 0.3},
    disjoint=True,
    template=None,
    max_prompt_tokens=100,
    max_answer_tokens=50,
    seed=0,
    utility=None,
)


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


WORDS = Rules(count_words, count_words)


def raw(prompt: str, chosen: str, rejected: str, split: Split, number: int, **more: Any) -> RawRow:
    values = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
    return RawRow(values, "mine", split, f"{split}.jsonl:{number}")


def asking(*prompts: str, split: Split = "train") -> list[RawRow]:
    return [raw(prompt, "Yes.", "No.", split, number) for number, prompt in enumerate(prompts, 1)]


def questions(count: int) -> list[str]:
    return [f"Question {number}?" for number in range(count)]


def with_settings(**changes: Any) -> Data:
    return dataclasses.replace(PAIRS, **changes)


TEST = asking("Asked in the test alone?", split="test")


def write_warts(folder: Path) -> Path:
    """Write a subset laid out as Anthropic/hh-rlhf, with one or two rows of each kind that cannot be used."""

    def talk(*turns: str) -> str:
        return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))

    def write(split: str, rows: list[tuple[str, str]]) -> None:
        lines = [json.dumps({"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
        (folder / "harmless" / f"{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))

    (folder / "harmless").mkdir()
    good = [(talk(question, "Yes."), talk(question, "No.")) for question in questions(10)]
    write(
        "train",
        [
            *good,
            (talk("Is it late?", "Yes.", "Very?", "Yes."), talk("Is it late?", "No.")),  # 11: prompts differ
            (talk("Is it cold?", ""), talk("Is it cold?", "No.")),  # 12: empty
            (talk("Is it warm?", "Yes."), talk("Is it warm?", " ")),  # 13: empty
            (talk("Is it wet?", "Yes."), talk("Is it wet?", "Yes. ")),  # 14: identical
            (talk("Is it far?", "Yes."), talk("Is it far?", "No.")),  # 15: in the test set
            (talk("Is it far?", "A bit."), talk("Is it far?", "No.")),  # 16: in the test set
            (talk("Is it dry?"), talk("Is it dry?", "No.")),  # 17: no assistant turn
            (talk("Is it high?", "word " * 51), talk("Is it high?", "No.")),  # 18: answer too long
            (talk("word " * 101, "Yes."), talk("word " * 101, "No.")),  # 19: prompt too long
            (talk("old " * 99, "Oh.", "Is it new?", "Yes."), talk("old " * 99, "Oh.", "Is it new?", "No.")),  # 20: cut
        ],
    )
    write(
        "test",
        [
            (talk("Is it far?", "Yes."), talk("Is it far?", "No.")),
            (talk("Is it low?", "Yes."), talk("Was it low?", "No.")),  # 2: prompts differ
        ],
    )
    return folder / "harmless"
