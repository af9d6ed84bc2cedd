"""The tokens that all stages agree on: where BOS and EOS stand, which token pads, and the columns each trainer gets.

GPT-2 has no pad token. The saved tokenizer pads with EOS, as GPT-2 users expect, and the vocabulary is never resized.
But with EOS as padding PPO masks the EOS that it should train, and the reward model scores the token before it
(TRL 1.12 `ppo_trainer.py`, `sequence_length`). So the reward model and PPO get a copy in memory that pads with a token
that no text produces (padding.py). That copy is never saved: reloaded, it would read a literal "ÿ" as padding.

Many tokenizers add BOS and EOS by themselves. A prompt keeps what is added at its start and loses what is added at its
end. An answer, which continues a prompt, gets neither; its EOS is added here.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import padding


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
        UserError: the vocabulary has no such token.
    """
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = _padding_token(tokenizer)
    padded.padding_side = side
    return padded


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that a row must not contain, since the trainers would read them as EOS or padding."""
    pad = _padding_token(tokenizer)
    is_special = any(token.content == pad for token in tokenizer.added_tokens_decoder.values())
    return [*tokenizer.all_special_tokens, *([pad] if is_special else [])]


def _padding_token(tokenizer: PreTrainedTokenizerBase) -> str:
    backend: Any = tokenizer
    named = {token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return padding.choose(backend.backend_tokenizer, named, str(tokenizer.chat_template or ""))


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
    prompt = prompt_ids(tokenizer, row["prompt"])
    answer = [*answer_ids(tokenizer, row["chosen"]), eos_id(tokenizer)]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def encode_reward(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the columns for RewardTrainer: prompt + answer + EOS for both answers; the score is read at EOS."""
    prompt = prompt_ids(tokenizer, row["prompt"])
    return {
        f"{side}_ids": [*prompt, *answer_ids(tokenizer, row[side]), eos_id(tokenizer)]
        for side in ("chosen", "rejected")
    }


def encode_ppo(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the columns for PPOTrainer: the prompt alone."""
    return {"input_ids": prompt_ids(tokenizer, row["prompt"])}


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a prompt, with what the tokenizer adds before a text (BOS), without what it adds after it."""
    encoded: Any = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, is_added = encoded["input_ids"], encoded["special_tokens_mask"]
    end = max((place for place, added in enumerate(is_added, 1) if not added), default=0)
    return ids[:end]


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of an answer, without EOS and without what the tokenizer adds to a text."""
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return encoded["input_ids"]
