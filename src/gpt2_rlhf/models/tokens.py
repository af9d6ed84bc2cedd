"""The tokens that all stages agree on: where BOS and EOS stand, which token pads, and the columns each trainer gets.

GPT-2 has no pad token. The saved tokenizer pads with EOS, as GPT-2 users expect, and the vocabulary is never resized.
But with EOS as padding PPO masks the EOS that it should train, and the reward model scores the token before it
(TRL 1.12 `ppo_trainer.py`, `sequence_length`). So the reward model and PPO get a copy in memory that pads with a token
that no text produces (padding.py). That copy is never saved: reloaded, it would read a literal "ÿ" as padding.

Many tokenizers add BOS and EOS by themselves. A prompt keeps what is added at its start; nothing is added at its end,
also by the saved tokenizer. An answer, which continues a prompt, gets neither; its EOS is added here. Some tokenizers
add a space to a text that stands alone. An answer has the tokens that it has after a prompt.

With a chat template a prompt is what the template renders, and EOS is what it puts after an answer (templates.py).
"""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import model_files, padding, templates, words
from gpt2_rlhf.models.templates import ASSISTANT, HUMAN, TRANSCRIPT, Refused

_TEXTS_AT_ONCE = 128

Row = Mapping[str, Any]  # with the texts prompt, chosen and rejected
Columns = dict[str, list[int]]


def load_base_tokenizer(model: Model, template: str | None) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer as `load_tokenizer` does. template: data.template, the form of the prompts."""
    return load_tokenizer(str(model_files.folder(model_files.tokenizer_place(model), model)), template)


def load_tokenizer(path: str, template: str | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder as all stages use it and as it is saved: padding with EOS on the right.

    template: "chat" for prompts in the model's own chat template; None for transcripts, which is what its chat template
    then renders.

    Raises:
        UserError: the tokenizer cannot be read, has no EOS token, or has a chat template that cannot be used.
    """
    tokenizer = _read(path)
    tokenizer.backend_tokenizer.no_truncation()  # tokenizer.json may have both; `_encoded` does not switch them off
    tokenizer.backend_tokenizer.no_padding()
    if template is not None:
        own: Any = tokenizer.get_chat_template() if tokenizer.chat_template else None
        _, end = templates.around_answer(own, tokenizer.special_tokens_map, tokenizer.backend_tokenizer)
        end = end or tokenizer.eos_token
        tokenizer.chat_template = templates.with_fixed_values(own, tokenizer.eos_token, end)
        tokenizer.eos_token = end
    if tokenizer.eos_token is None:
        raise UserError(f"model: the tokenizer at {path} has no EOS token; expected one that ends an answer")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    start = _add_nothing_after(tokenizer)
    if template is None:
        tokenizer.chat_template = start + TRANSCRIPT
    return tokenizer


def load_published(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was saved with a model, for prompts in its chat template if there is a usable one."""
    if has_chat_template(_read(path)):
        with contextlib.suppress(UserError):  # the template of somebody else's model
            return load_tokenizer(path, "chat")
    return load_tokenizer(path, None)


def _read(path: str) -> Any:
    """Load the tokenizer as it was saved, which also reads the config of its model."""
    with model_files.load_errors(f"{path}: its tokenizer or config"):
        return AutoTokenizer.from_pretrained(path)


def _add_nothing_after(tokenizer: Any) -> str:
    """Let the tokenizer add nothing after a text, where an answer would follow; return what it adds before."""
    backend = tokenizer.backend_tokenizer
    encoded = backend.encode("a")
    mask = [*encoded.special_tokens_mask, 0]  # the 0 for vocabularies without this letter
    added = encoded.tokens[: mask.index(0)]
    if mask[-2:-1] == [1]:
        ids = [(token, backend.token_to_id(token)) for token in dict.fromkeys(added)]
        single = [f"{token}:0" for token in added] + ["$A:0"]
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, "$B:1"], special_tokens=ids
        )
    return "".join(added)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether prompts are rendered by a chat template, and not transcripts as they are."""
    return tokenizer.chat_template is not None and not str(tokenizer.chat_template).endswith(TRANSCRIPT)


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
    """Return the texts that a row must not contain, since the model would read them as EOS, padding or a turn's end."""
    pad = _padding_token(tokenizer)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    of_turns = sorted(special) if has_chat_template(tokenizer) else []
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *({pad} & special), *of_turns]))


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


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each prompt, with what the tokenizer adds before a text (BOS); a template has its own."""
    is_alone = not has_chat_template(tokenizer)
    return _encoded(tokenizer, _rendered(tokenizer, prompts), add_special_tokens=is_alone)


def encode_sft(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for SFTTrainer: prompt + chosen + EOS, with labels -100 on the prompt."""
    prompts, chosen = ([row[column] for row in rows] for column in ("prompt", "chosen"))
    texts = zip(encode_prompts(tokenizer, prompts), _answer_ids(tokenizer, chosen), strict=True)
    return [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt, answer in texts]


def encode_reward(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for RewardTrainer: prompt + answer + EOS for both answers; the score is read at EOS."""
    sides = ("chosen_ids", "rejected_ids")
    return [{side: row["prompt_ids"] + row[side] for side in sides} for row in encode_dpo(tokenizer, rows)]


def encode_dpo(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for DPOTrainer: the prompt, and both answers with EOS."""
    prompts, *answers = ([row[column] for row in rows] for column in ("prompt", "chosen", "rejected"))
    texts = zip(encode_prompts(tokenizer, prompts), *(_answer_ids(tokenizer, one) for one in answers), strict=True)
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected} for prompt, chosen, rejected in texts
    ]


def encode_ppo(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Columns]:
    """Return the columns for PPOTrainer: the prompt alone."""
    return [{"input_ids": ids} for ids in encode_prompts(tokenizer, [row["prompt"] for row in rows])]


def count_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each prompt, without what the tokenizer adds by itself."""
    return [len(ids) for ids in _encoded(tokenizer, _rendered(tokenizer, prompts), add_special_tokens=False)]


def count_answers(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]) -> list[int]:
    """Return the number of tokens of each answer, without EOS."""
    return [len(ids) - 1 for ids in _answer_ids(tokenizer, answers)]


def word_counter(tokenizer: PreTrainedTokenizerBase) -> words.Count | None:
    """Return what counts as `count_prompts` and `count_answers` do, faster for many texts; None if nothing does."""
    backend: Any = tokenizer
    return None if has_chat_template(tokenizer) else words.counter(backend.backend_tokenizer)


def before_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the white space that stands between a prompt and its answer."""
    backend: Any = tokenizer
    if not has_chat_template(tokenizer):
        return " "
    template, named = str(tokenizer.chat_template), tokenizer.special_tokens_map
    return templates.around_answer(template, named, backend.backend_tokenizer)[0]


def refusal(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str | None:
    """Return why the chat template does not take a prompt; None if it does."""
    try:
        _rendered(tokenizer, [prompt])
    except Refused as reason:
        return f"refused by the chat template: {reason}"
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Sequence[str]:
    """Return the prompts in the form that the model reads."""
    if not has_chat_template(tokenizer):
        return prompts
    template, named = str(tokenizer.chat_template), tokenizer.special_tokens_map
    return [templates.render(template, named, templates.messages(one), for_answer=True) for one in prompts]


def _answer_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each answer after a prompt, and EOS."""
    space, eos = before_answer(tokenizer), eos_id(tokenizer)
    ids_of = partial(_encoded, tokenizer, add_special_tokens=False)
    if has_chat_template(tokenizer):
        texts = [f"{space}{text.removeprefix(' ')}" for text in texts]
    (before,) = _rendered(tokenizer, [f"{HUMAN} question{ASSISTANT}"])
    answer, prompt, both = ids_of([f"{space}answer", before, f"{before}{space}answer"])
    ids = ids_of(texts)
    if both != prompt + answer:  # alone, the answer has a space more
        after = ids_of([f"{before}{text}" for text in texts])
        cut = len(prompt)
        ids = [one[cut:] if one[:cut] == prompt else alone for one, alone in zip(after, ids, strict=True)]
    return [[*one, eos] for one in ids]


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
    """Return the ids of each text. Threads share the texts, since encoding needs no lock of Python.

    The threads of the library itself are switched off, since they do not survive the fork of a stage's process.
    """
    backend: Any = tokenizer
    encode = partial(backend.backend_tokenizer.encode_batch_fast, add_special_tokens=add_special_tokens)
    parts = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    if len(parts) < 2:
        return [one.ids for part in parts for one in encode(part)]
    with ThreadPoolExecutor() as threads:
        return [ids for part in threads.map(lambda part: [one.ids for one in encode(part)], parts) for ids in part]
