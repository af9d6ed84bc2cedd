import hashlib
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel, GPT2Tokenizer

from gpt2_rlhf.embedded import build, generator, lexicon
from gpt2_rlhf.embedded.utility import utility

SMALL = replace(build.Recipe(), tokenizer_texts=2_000, training_texts=128, raw_texts=128, batch_texts=32, threads=1)


def sha256(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("built")
    build.build(SMALL, directory)
    return directory


def test_the_same_recipe_gives_the_same_files(built, tmp_path):
    build.build(SMALL, tmp_path)
    assert sha256(tmp_path) == sha256(built)


def test_another_seed_gives_other_weights(built, tmp_path):
    build.build(replace(SMALL, seed=1), tmp_path)
    assert sha256(tmp_path)["model.safetensors"] != sha256(built)["model.safetensors"]


def test_a_build_has_the_files_that_are_bundled(built):
    bundled = {file.name for file in build.MODEL_DIR.iterdir()} - {"README.md"}
    assert {file.name for file in built.iterdir()} == bundled


def test_no_bundled_file_is_over_three_megabytes():
    assert max(file.stat().st_size for file in build.MODEL_DIR.iterdir()) < 3_000_000


def test_weights_are_stored_in_half_and_read_in_full_precision():
    assert {w.dtype for w in load_file(build.MODEL_DIR / "model.safetensors").values()} == {torch.float16}
    assert GPT2LMHeadModel.from_pretrained(build.MODEL_DIR).dtype == torch.float32


def test_the_bundled_model_is_a_gpt2_of_two_layers_and_0_66_million_parameters():
    model = GPT2LMHeadModel.from_pretrained(build.MODEL_DIR)
    assert (model.config.n_layer, model.config.n_embd, model.config.n_positions) == (2, 128, 512)
    assert model.num_parameters() == 658_944  # 1,536 + 512 rows of 128, two layers of 198,272, and a last norm of 256


def test_padding_and_end_are_the_same_token_everywhere():
    model = GPT2LMHeadModel.from_pretrained(build.MODEL_DIR)
    tokenizer = GPT2Tokenizer.from_pretrained(build.MODEL_DIR)
    last = len(tokenizer) - 1
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.convert_ids_to_tokens(last) == "<|endoftext|>"
    for holder in (tokenizer, model.config, model.generation_config):
        assert (holder.eos_token_id, holder.pad_token_id, holder.bos_token_id) == (last, last, last)


@pytest.mark.parametrize("tokenizer_class", [GPT2Tokenizer, AutoTokenizer])
@pytest.mark.parametrize(
    "text", ["\n\nHuman: Hi!\n\nAssistant: Hello.", "naïve ÿ 漢字 🙂", "  two  spaces \t tab", "\x00"]
)
def test_the_tokenizer_gives_any_text_back(tokenizer_class, text):
    tokenizer = tokenizer_class.from_pretrained(build.MODEL_DIR)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_has_a_symbol_and_no_text_gives_that_of_0xff():
    tokenizer = GPT2Tokenizer.from_pretrained(build.MODEL_DIR)
    single = [token for token in tokenizer.get_vocab() if len(token) == 1]
    assert len(single) == 256
    assert tokenizer.get_vocab()["ÿ"] not in tokenizer("ÿ ÿÿ")["input_ids"]


def test_base_samples_are_fluent_often_go_on_and_are_worse_than_chosen_answers():
    tokenizer = AutoTokenizer.from_pretrained(build.MODEL_DIR, padding_side="left")
    model = GPT2LMHeadModel.from_pretrained(build.MODEL_DIR)
    rows = generator.pairs(200, seed=99)
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    generated = model.generate(  # type: ignore[attr-defined]
        **inputs, max_new_tokens=64, do_sample=True, top_k=0, temperature=1.0
    )
    answers = generated[:, inputs["input_ids"].shape[1] :]
    ended = (answers == tokenizer.eos_token_id).any(dim=1)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    utilities = [utility(row["prompt"], text) for row, text in zip(rows, texts, strict=True)]
    chosen = [utility(row["prompt"], row["chosen"]) for row in rows]
    assert 0.3 < ended.float().mean() < 0.7  # the rest goes on with the next question
    assert statistics.mean(utilities) < statistics.mean(chosen) - 2.0
    first_turns = [text.partition("\n\nHuman:")[0] for text in texts]
    whole = [lexicon.brokenness(lexicon.words(s)) == 0 for text in first_turns for s in lexicon.sentences(text)]
    assert statistics.mean(whole) > 0.8
