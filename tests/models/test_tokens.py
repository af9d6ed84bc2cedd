import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as bpe
from transformers import PreTrainedTokenizerFast

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Model
from gpt2_rlhf.models import loading, model_files, tokens
from gpt2_rlhf.models.model_files import EMBEDDED_DIR
from helpers.tiny import tiny_tokenizer

ROW = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " No."}
SPECIAL = ("<unk>", "<s>", "</s>")


def of_letters(*more: str, special: tuple[str, ...] = SPECIAL, byte_level: bool = False, template: str | None = None):
    """A tokenizer of single letters, "ÿ" among them unless it is byte-level, and of `more` tokens."""
    letters = sorted(set("\n :.?abcdefghijklmnopqrstuvwxyzAHN▁" + ("Ċ" if byte_level else "ÿ")))
    vocabulary = {token: number for number, token in enumerate([*special, *letters, *more])}
    backend = Tokenizer(bpe.BPE(vocabulary, [], unk_token="<unk>", byte_fallback="<0xFF>" in more))
    backend.add_special_tokens(list(special))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(False) if byte_level else pre_tokenizers.Metaspace()
    backend.decoder = decoders.ByteLevel() if byte_level else decoders.Metaspace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    made.chat_template = template
    return made


def adding(pattern: str, folder: Path, bos: str = "<s>"):
    """The tokenizer that adds tokens by itself, loaded from this folder: the pattern has $A for a text."""
    made = of_letters("<0xFF>")
    ids = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pattern, pair=f"{pattern} $B", special_tokens=ids
    )
    made.bos_token = bos
    made.save_pretrained(folder)
    return tokens.load_tokenizer(str(folder), None)


@pytest.fixture
def saved():
    return tokens.load_tokenizer(str(EMBEDDED_DIR), None)


def test_the_saved_tokenizer_pads_with_eos_on_the_right(saved):
    assert saved.pad_token == saved.eos_token
    assert saved.padding_side == "right"


def test_the_padding_copy_changes_neither_the_vocabulary_nor_the_ids_of_a_text(saved):
    padded = tokens.padding_copy(saved, "left")
    text = ROW["prompt"] + ROW["chosen"]
    assert len(padded) == len(saved)
    assert padded(text)["input_ids"] == saved(text)["input_ids"]
    assert padded.padding_side == "left"
    assert saved.pad_token == saved.eos_token  # the original is left as it was


def test_no_text_contains_the_padding(saved):
    padding = tokens.pad_id(tokens.padding_copy(saved, "right"))
    assert padding != tokens.eos_id(saved)
    everything = "".join(map(chr, range(1, 0x3000)))  # a literal "ÿ" is among them, as two bytes
    assert padding not in saved(everything)["input_ids"]


def test_a_letter_of_a_vocabulary_that_is_not_byte_level_never_pads():
    tokenizer = of_letters("<0xFF>")
    padding = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    assert tokenizer.convert_tokens_to_ids("ÿ") in tokenizer("Zaÿ")["input_ids"]
    assert padding == tokenizer.convert_tokens_to_ids("<0xFF>")
    assert padding not in tokenizer("aÿa <0xFF> a<0xFF>a")["input_ids"]
    assert tokens.special_tokens(tokenizer) == tokenizer.all_special_tokens


@pytest.mark.parametrize(
    ("more", "template", "expected"),
    [
        (("<repo>", "<file>"), None, "<repo>"),
        (("<repo>", "<file>"), "{{ '<repo>' }}", "<file>"),
        (("<repo>", "<reserved_0>", "<unused0>"), None, "<unused0>"),
        (("<repo>", "<reserved_0>", "<fim_pad>"), None, "<fim_pad>"),
        (("<repo>", "<reserved_0>", "<pad>"), "<pad>", "<reserved_0>"),
    ],
)
@pytest.mark.parametrize("byte_level", [True, False])
def test_without_a_token_of_an_unused_byte_an_unused_special_token_pads(more, template, expected, byte_level):
    tokenizer = of_letters(special=(*SPECIAL, *more), byte_level=byte_level, template=template)
    assert tokens.padding_copy(tokenizer, "left").pad_token == expected
    assert expected in tokens.special_tokens(tokenizer)


@pytest.mark.parametrize("byte_level", [True, False])
def test_a_vocabulary_without_any_unused_token_is_refused_before_training(byte_level: bool, tmp_path: Path):
    tokenizer = of_letters(byte_level=byte_level)
    with pytest.raises(UserError, match="no token to pad with"):
        tokens.padding_copy(tokenizer, "right")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no token to pad with"):
        model_files.check(Model("embedded", None, str(tmp_path), None))


@pytest.mark.parametrize(("template", "expected"), [(None, "<repo>"), ("chat", "<file>")])
def test_the_check_before_training_chooses_the_padding_of_training(template: str | None, expected: str, tmp_path: Path):
    own = "<repo>{% for one in messages %}{{ one.content }}{% endfor %}"
    tokenizer = of_letters(special=(*SPECIAL, "<repo>", "<file>"), template=own)
    tokenizer.save_pretrained(tmp_path)
    padded = tokens.padding_copy(tokens.load_tokenizer(str(tmp_path), template), "left")
    found = model_files.padding_token(Model("embedded", None, str(tmp_path), None), template)
    assert found == (padded.pad_token, padded.pad_token_id)
    assert padded.pad_token == expected


def test_a_padding_token_outside_the_embedding_is_refused(tmp_path: Path):
    tokenizer = of_letters(special=(*SPECIAL, "<repo>"))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 3, "n_positions": 9}), encoding="utf-8")
    with pytest.raises(UserError, match=r"<repo>, has id 3, but .* vocab_size of 3"):
        model_files.check(Model(str(tmp_path), None, None, None))


@pytest.mark.parametrize(
    ("pattern", "bos", "start"),
    [
        ("<s> $A", "<s>", ["<s>"]),
        ("</s> $A", "</s>", ["</s>"]),  # OPT
        ("$A </s>", "<s>", []),
        ("<s> $A </s>", "<s>", ["<s>"]),
        ("$A", "<s>", []),
    ],
)
def test_bos_stands_once_before_the_prompt_and_eos_once_after_the_answer(
    pattern: str, bos: str, start: list[str], tmp_path: Path
):
    tokenizer = adding(pattern, tmp_path, bos)
    text: list[Any] = [
        tokenizer(ROW[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "chosen", "rejected")
    ]
    first: Any = tokenizer.convert_tokens_to_ids(start)
    prompt = [*first, *text[0]]
    eos = tokens.eos_id(tokenizer)
    assert tokens.encode_ppo(tokenizer, [ROW])[0] == {"input_ids": prompt}
    assert tokens.encode_sft(tokenizer, [ROW])[0] == {
        "input_ids": [*prompt, *text[1], eos],
        "labels": [*[-100] * len(prompt), *text[1], eos],
    }
    assert tokens.encode_reward(tokenizer, [ROW])[0] == {
        "chosen_ids": [*prompt, *text[1], eos],
        "rejected_ids": [*prompt, *text[2], eos],
    }


@pytest.mark.parametrize("pattern", ["<s> $A", "$A </s>", "<s> $A </s>", None])
def test_texts_encoded_together_get_the_tokens_that_each_gets_alone(pattern: str | None, saved, tmp_path: Path):
    plain_tokenizer: Any = copy.deepcopy(saved) if pattern is None else adding(pattern, tmp_path)
    cutting = copy.deepcopy(plain_tokenizer)
    cutting.backend_tokenizer.enable_truncation(5)  # a saved tokenizer may bring both
    cutting.backend_tokenizer.enable_padding(length=9)
    cutting.save_pretrained(tmp_path / "cutting")
    tokenizer = tokens.load_tokenizer(str(tmp_path / "cutting"), None)
    texts = ["", " ", "a\n\n", "Ünï «x» 漢字 🙂", *(f" word {n}" * (n % 40) for n in range(300))]
    rows = [{"prompt": f"\n\nHuman: {text}\n\nAssistant:", "chosen": text, "rejected": text[::-1]} for text in texts]
    assert len(rows) > 2 * tokens._TEXTS_AT_ONCE  # several threads share them
    plain = [[plain_tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in row] for row in rows]
    start: Any = tokenizer.convert_tokens_to_ids(["<s>"] if pattern and pattern.startswith("<s>") else [])
    eos = tokens.eos_id(tokenizer)
    assert tokens.encode_ppo(tokenizer, rows) == [{"input_ids": [*start, *prompt]} for prompt, _, _ in plain]
    assert tokens.encode_reward(tokenizer, rows) == [
        {"chosen_ids": [*start, *prompt, *chosen, eos], "rejected_ids": [*start, *prompt, *rejected, eos]}
        for prompt, chosen, rejected in plain
    ]
    assert tokens.count_answers(tokenizer, texts) == [len(chosen) for _, chosen, _ in plain]
    assert tokens.count_prompts(tokenizer, texts) == [len(chosen) for _, chosen, _ in plain]


def test_the_tokens_added_before_a_prompt_are_counted(tmp_path: Path):
    adding("<s> $A </s>", tmp_path)
    assert model_files.start_tokens(Model("embedded", None, str(tmp_path), None)) == 1
    assert model_files.start_tokens(Model("embedded", None, "embedded", None)) == 0


def test_sft_trains_on_the_answer_and_its_eos_and_not_on_the_prompt():
    tokenizer = tiny_tokenizer()
    encoded = tokens.encode_sft(tokenizer, [ROW])[0]
    trained = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(encoded["input_ids"]) == ROW["prompt"] + ROW["chosen"] + str(tokenizer.eos_token)
    assert tokenizer.decode(trained) == ROW["chosen"] + str(tokenizer.eos_token)
    assert len(encoded["labels"]) == len(encoded["input_ids"])


def test_both_answers_of_a_pair_end_with_eos():
    tokenizer = tiny_tokenizer()
    encoded = tokens.encode_reward(tokenizer, [ROW])[0]
    assert tokenizer.decode(encoded["chosen_ids"]) == ROW["prompt"] + ROW["chosen"] + str(tokenizer.eos_token)
    assert tokenizer.decode(encoded["rejected_ids"]) == ROW["prompt"] + ROW["rejected"] + str(tokenizer.eos_token)


def test_encoding_prompt_and_answer_apart_gives_the_ids_of_the_joined_text(saved):
    joined = saved(ROW["prompt"] + ROW["chosen"])["input_ids"]
    assert tokens.encode_sft(saved, [ROW])[0]["input_ids"] == [*joined, tokens.eos_id(saved)]


def test_ppo_gets_the_prompt_alone(saved):
    assert saved.decode(tokens.encode_ppo(saved, [ROW])[0]["input_ids"]) == ROW["prompt"]


def test_random_weights_have_the_shape_in_the_settings_and_depend_on_the_seed_alone():
    shape = {"vocab_size": 2000, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = Model("a-shape", None, "embedded", shape)
    first, again, other = (loading.load_base(model, seed) for seed in (1, 1, 2))
    weights = [m.state_dict()["transformer.wte.weight"] for m in (first, again, other)]
    assert weights[0].shape == (2000, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
