"""Tokenizers of other kinds than GPT-2's, trained on a few sentences, and chat templates of a few lines."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gpt2_rlhf.models import tokens

_SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
_TEXTS = [
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, then bake it for an hour.",
    "\n\nHuman: What is the best way to learn chess?\n\nAssistant: Play often, and look at the games you lost.",
    "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\nI do not know, sorry. [INST] [/INST]",
]
_SPACES = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
_WORDS = pre_tokenizers.Sequence(
    [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_2 = (  # its answer has a space before it, and another before EOS
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def _llama_2() -> Tokenizer:
    """BPE over whole texts with bytes for what it does not know; it adds BOS, and a space to each text."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = _WORDS  # to learn; later it has none
    _learn(backend, trainers.BpeTrainer, vocab_size=450, special=[f"<0x{byte:02X}>" for byte in range(256)])
    made = json.loads(backend.to_str())
    made["pre_tokenizer"] = None
    made["added_tokens"] = [token for token in made["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(made))
    backend.decoder = _SPACES
    return _adding(backend, "<s> $A")


def _gemma() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer, backend.decoder = normalizers.Replace(" ", "▁"), _SPACES
    backend.pre_tokenizer = _WORDS
    return _adding(_learn(backend, trainers.BpeTrainer), "<s> $A")


def _t5() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _adding(_learn(backend, trainers.UnigramTrainer, unk_token="<unk>"), "$A </s>")


def _bert() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _adding(_learn(backend, trainers.WordPieceTrainer), "<s> $A </s>")


def _byte_level(add_prefix_space: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _learn(backend, trainers.BpeTrainer, vocab_size=350, initial_alphabet=alphabet)


def _learn(backend: Tokenizer, kind: Any, special: Sequence[str] = (), vocab_size: int = 200, **more: Any) -> Tokenizer:
    trainer = kind(vocab_size=vocab_size, special_tokens=[*_SPECIAL, *special], show_progress=False, **more)
    backend.train_from_iterator(_TEXTS, trainer)
    return backend


def _adding(backend: Tokenizer, pattern: str) -> Tokenizer:
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=pattern, pair=f"{pattern} $B", special_tokens=ids)
    return backend


KINDS = {
    "llama 2": _llama_2,
    "gemma": _gemma,
    "t5": _t5,
    "bert": _bert,
    "gpt2": lambda: _byte_level(add_prefix_space=False),
    "roberta": lambda: _byte_level(add_prefix_space=True),
}


@cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


def write(kind: str, folder: Path, template: str | None = None) -> Path:
    """Write the tokenizer of a model into the folder, as it is before this project loads it."""
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def loaded(kind: str, folder: Path, own: str | None = None, template: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer as this project loads it. own: its chat template; template: data.template."""
    return tokens.load_tokenizer(str(write(kind, folder, own)), template)
