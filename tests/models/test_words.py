"""Counting word by word against encoding each text whole, on texts of all kinds of letters, digits and white space."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from gpt2_rlhf import data
from gpt2_rlhf.models import words
from gpt2_rlhf.models.tokens import count_answers, count_prompts
from helpers import tokenizers_tiny
from helpers.tiny import tiny_tokenizer

SPACES = ["", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\n ", " \n", "\t", "\x1c", "\x85", "\xa0", "\u2003", "\u3000"]
WORDS = [
    "a",
    "The",
    "don't",
    "'s",
    "1",
    "23",
    "²",
    "Ⅷ",
    "é",
    "e\u0301",
    "Ω",
    "Привет",
    "漢字",
    "🙂",
    "«x»",
    "--",
    "<s>",
]
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


def texts(count: int) -> list[str]:
    chance = random.Random(0)
    return [
        "".join(chance.choice(SPACES) + chance.choice(WORDS) for _ in range(chance.randrange(40)))
        + chance.choice(SPACES)
        for _ in range(count)
    ]


def learnt(pre_tokenizer: Any) -> Tokenizer:
    """A byte-level BPE with tokens of several spaces, and of spaces with letters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts(500), trainer)
    return backend


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        BYTE_LEVEL,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), BYTE_LEVEL]),
    ],
)
def test_words_have_as_many_tokens_together_as_their_text(pre_tokenizer: Any) -> None:
    backend = learnt(pre_tokenizer)
    assert any(token.startswith("ĠĠ") for token in backend.get_vocab())  # so that a wrong border changes the number
    asked = [*texts(2000), "", " ", "漢字" * 50, "Привет " * 50, "a" * 200]
    count = words.counter(backend)
    assert count is not None
    expected = [len(backend.encode(text, add_special_tokens=False)) for text in asked]
    assert count(asked) == expected
    assert count(asked[::-1]) == expected[::-1]  # with all words known


def changed(change: Callable[[Tokenizer], object]) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        backend = learnt(BYTE_LEVEL)
        change(backend)
        return backend

    return make


def splitting(pre_tokenizer: Any) -> Callable[[], Tokenizer]:
    return changed(lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizer))


def adding(token: str | AddedToken) -> Callable[[], Tokenizer]:
    return changed(lambda backend: backend.add_tokens([token]))


@pytest.mark.parametrize(
    "make",
    [
        changed(lambda backend: setattr(backend, "normalizer", normalizers.Lowercase())),
        splitting(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        splitting(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        splitting(pre_tokenizers.Sequence([pre_tokenizers.Split("  ", "isolated"), BYTE_LEVEL])),
        adding(AddedToken("<x>", lstrip=True)),
        adding(AddedToken("<x>", rstrip=True)),
        adding(AddedToken("<x>", single_word=True)),
        adding("  "),
        adding("bread"),
        *(tokenizers_tiny.KINDS[kind] for kind in ("llama 2", "gemma", "t5", "bert", "roberta")),
    ],
)
def test_a_tokenizer_that_may_look_beyond_a_word_is_not_counted_by_words(make: Callable[[], Tokenizer]) -> None:
    assert words.counter(make()) is None


def test_the_data_stage_counts_by_words_what_it_would_count_whole() -> None:
    tokenizer = tiny_tokenizer()
    rules = data.rules(tokenizer)
    assert rules.count_prompts is rules.count_answers
    prompts = [f"\n\nHuman: {text}\n\nAssistant:" for text in texts(50)]
    answers = [f" {text.strip()}" for text in texts(50)]
    assert rules.count_prompts(prompts) == count_prompts(tokenizer, prompts)
    assert rules.count_answers(answers) == count_answers(tokenizer, answers)
