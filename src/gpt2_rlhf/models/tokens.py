"""The tokens that all stages agree on: where EOS stands, which token pads, and the columns each trainer gets.

GPT-2 has no pad token. The saved tokenizer pads with EOS, as GPT-2 users expect, and the vocabulary is never resized.
But with EOS as padding PPO masks the EOS that it should train, and the reward model scores the token before it
(TRL 1.12 `ppo_trainer.py`, `sequence_length`). So the reward model and PPO get a copy in memory that pads with the byte
symbol of 0xFF, which no UTF-8 text contains. That copy is never saved: reloaded, it would read a literal "ÿ" in a text
as padding.
"""

import copy
from collections.abc import Mapping
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError

# Bytes that valid UTF-8 never contains (RFC 3629 section 1), as the symbols of GPT-2's byte-level alphabet.
_UNUSED_BYTE_SYMBOLS = ("ÿ", "þ", "ý", "ü", "û", "ú", "ù", "ø", "÷", "ö", "õ", "Á", "À")


def load_tokenizer(path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or Hub name, padding with EOS on the right, as it is saved.

    Raises:
        UserError: the tokenizer has no EOS token.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
    if tokenizer.eos_token is None:
        raise UserError(f"model: the tokenizer at {path} has no EOS token; expected one that ends an answer")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def padding_copy(tokenizer: PreTrainedTokenizerBase, side: Literal["left", "right"]) -> PreTrainedTokenizerBase:
    """Return a copy that pads with a token no text produces, for the reward model and PPO. Never save it.

    Raises:
        UserError: the vocabulary has none of the byte symbols that UTF-8 text cannot contain.
    """
    vocabulary = tokenizer.get_vocab()
    symbol = next((s for s in _UNUSED_BYTE_SYMBOLS if s in vocabulary), None)
    if symbol is None:
        raise UserError(
            "model: the tokenizer is not a byte-level BPE, so it has no token that text cannot produce to pad with; "
            "use a GPT-2 style tokenizer"
        )
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = symbol
    padded.padding_side = side
    return padded


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of EOS, which every tokenizer from `load_tokenizer` has."""
    assert isinstance(tokenizer.eos_token_id, int)
    return tokenizer.eos_token_id


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token."""
    assert isinstance(tokenizer.pad_token_id, int)
    return tokenizer.pad_token_id


def encode_sft(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the columns for SFTTrainer: prompt + chosen + EOS, with labels -100 on the prompt."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = [*tokenizer(row["chosen"])["input_ids"], eos_id(tokenizer)]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def encode_reward(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the columns for RewardTrainer: prompt + answer + EOS for both answers; the score is read at EOS."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    return {
        f"{side}_ids": [*prompt, *tokenizer(row[side])["input_ids"], eos_id(tokenizer)]
        for side in ("chosen", "rejected")
    }


def encode_ppo(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the columns for PPOTrainer: the prompt alone."""
    return {"input_ids": tokenizer(row["prompt"])["input_ids"]}
