"""The tokens that all stages agree on: where BOS and EOS stand, which token pads, and the columns each trainer gets.

GPT-2 has no pad token. The saved tokenizer pads with EOS, as GPT-2 users expect, and the vocabulary is never resized.
But with EOS as padding PPO masks the EOS that it should train, and the reward model scores the token before it
(TRL 1.12 `ppo_trainer.py`, `sequence_length`). So the reward model and PPO get a copy in memory that pads with a token
that no text produces (padding.py). That copy is never saved: reloaded, it would read a literal "ÿ" as padding.

Many tokenizers add BOS and EOS by themselves. A prompt keeps what is added at its start and loses what is added at its
end. An answer, which continues a prompt, gets neither; its EOS is added here.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import padding

_TEXTS_AT_ONCE = 128

T = TypeVar("T")
Row = Mapping[str, Any]  # with the texts prompt, chosen and rejected
Columns = dict[str, list[int]]


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


def encode_sft(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for SFTTrainer: prompt + chosen + EOS, with labels -100 on the prompt."""
    texts = zip(_prompt_ids(tokenizer, rows), _answer_ids(tokenizer, rows, "chosen"), strict=True)
    return [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt, answer in texts]


def encode_reward(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for RewardTrainer: prompt + answer + EOS for both answers; the score is read at EOS."""
    answers = (_answer_ids(tokenizer, rows, side) for side in ("chosen", "rejected"))
    texts = zip(_prompt_ids(tokenizer, rows), *answers, strict=True)
    return [{"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected} for prompt, chosen, rejected in texts]


def encode_dpo(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for DPOTrainer: the prompt, and both answers with EOS."""
    answers = (_answer_ids(tokenizer, rows, side) for side in ("chosen", "rejected"))
    texts = zip(_prompt_ids(tokenizer, rows), *answers, strict=True)
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected} for prompt, chosen, rejected in texts
    ]


def encode_ppo(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for PPOTrainer: the prompt alone."""
    return [{"input_ids": ids} for ids in _prompt_ids(tokenizer, rows)]


def counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, without what the tokenizer adds to it."""
    return _encoded(tokenizer, texts, len, add_special_tokens=False)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[list[int]]:
    """Return the ids of each prompt, with what the tokenizer adds before a text (BOS), without what it adds after."""

    def without_end(encoded: Encoding) -> list[int]:
        ids, is_added = encoded.ids, encoded.special_tokens_mask
        while is_added and is_added.pop():
            ids.pop()
        return ids

    return _encoded(tokenizer, [row["prompt"] for row in rows], without_end, add_special_tokens=True)


def _answer_ids(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], column: str) -> list[list[int]]:
    """Return the ids of each answer and EOS, without what the tokenizer adds to a text."""
    eos = eos_id(tokenizer)
    return _encoded(tokenizer, [row[column] for row in rows], lambda one: [*one.ids, eos], add_special_tokens=False)


def _encoded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    taken: Callable[[Encoding], T],
    add_special_tokens: bool,
) -> list[T]:
    """Return what `taken` takes of each encoded text. Threads share the texts, since encoding needs no lock of Python.

    The threads of the library itself are switched off, since they do not survive the fork of a stage's process.
    """
    tokenizer("", verbose=False)  # sets the backend to what a call uses: no cut, no padding
    backend: Any = tokenizer
    encode = partial(backend.backend_tokenizer.encode_batch_fast, add_special_tokens=add_special_tokens)
    parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    if len(parts) < 2:
        return [taken(one) for part in parts for one in encode(part)]
    with ThreadPoolExecutor() as threads:
        return [one for part in threads.map(lambda part: [taken(one) for one in encode(part)], parts) for one in part]
