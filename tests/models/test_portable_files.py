"""The files of a published model, as transformers 4 and 5 read them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from gpt2_rlhf.models import loading, model_files, portable_files, tokens
from helpers.tiny import EOS, POSITIONS, tiny_policy, tiny_reward, tiny_tokenizer

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 0}
TEXTS = [
    "\n\nHuman: How?\n\nAssistant: So.",
    "  two  spaces,\ta tab",
    "é 日本 \u00ff \u2028 \U0001f600",
    f"one{EOS}two",
    "",
]


def published(model_dir: Path, texts: dict[str, str]) -> Path:
    """A folder with the files of the model and these texts in their place."""
    for name, text in texts.items():
        (model_dir / name).write_text(text, encoding="utf-8")
    return model_dir


def read(texts: dict[str, str], name: str) -> dict[str, Any]:
    return json.loads(texts[name])


@pytest.fixture(scope="module")
def policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policy")
    model = tiny_policy(tiny_tokenizer())
    model.config.use_cache = False
    model.generation_config = GenerationConfig(repetition_penalty=1.3, do_sample=True, eos_token_id=256)
    loading.save(model, tiny_tokenizer(), directory)
    return directory


@pytest.mark.parametrize("make", ["bundled", "tiny"])
def test_vocab_and_merges_give_the_ids_of_the_tokenizer(make: str, policy_dir: Path, tmp_path: Path) -> None:
    model_dir = model_files.EMBEDDED_DIR if make == "bundled" else policy_dir
    texts = portable_files.texts(model_dir, SAMPLING)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text(texts[name], encoding="utf-8")
    rebuilt = Tokenizer(models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))
    rebuilt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rebuilt.decoder = decoders.ByteLevel()
    rebuilt.add_special_tokens([EOS])
    expected = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    assert rebuilt.get_vocab() == expected.get_vocab()
    for text in TEXTS:
        ids = rebuilt.encode(text).ids
        assert ids == expected.encode(text).ids
        assert rebuilt.decode(ids) == expected.decode(ids)


def test_a_tokenizer_that_is_no_byte_level_bpe_gets_no_vocabulary_files(policy_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((policy_dir / name).read_bytes())
    content = read({"t": (tmp_path / "tokenizer.json").read_text()}, "t")
    content["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert set(portable_files.texts(tmp_path, SAMPLING)) == {"config.json"}


def test_the_cache_is_used_and_the_sampling_is_that_of_the_evaluation(policy_dir: Path) -> None:
    texts = portable_files.texts(policy_dir, SAMPLING)
    assert read(texts, "config.json")["use_cache"] is True
    generation = read(texts, "generation_config.json")
    assert {key: generation[key] for key in SAMPLING} == SAMPLING
    assert generation["eos_token_id"] == tokens.eos_id(tiny_tokenizer())  # not 256, which the base model had
    assert "repetition_penalty" not in generation


def test_a_tokenizer_says_how_long_a_text_can_be_and_not_how_it_was_loaded() -> None:
    config = read(portable_files.texts(model_files.EMBEDDED_DIR, SAMPLING), "tokenizer_config.json")
    assert config["model_max_length"] == 512
    assert not {"is_local", "local_files_only"} & config.keys()


def test_nothing_of_how_a_tokenizer_was_loaded_is_published(policy_dir: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy_dir, local_files_only=True, revision=None)
    loading.save(tiny_policy(tokenizer), tokenizer, tmp_path)
    config = read(portable_files.texts(tmp_path, SAMPLING), "tokenizer_config.json")
    given = json.loads((policy_dir / "tokenizer_config.json").read_text())
    assert config.keys() == given.keys()
    assert config["model_max_length"] == POSITIONS


def test_a_reward_model_has_one_label_whose_score_gets_no_sigmoid(tmp_path: Path) -> None:
    loading.save(tiny_reward(tiny_tokenizer()), tiny_tokenizer(), tmp_path)
    config = AutoConfig.from_pretrained(published(tmp_path, portable_files.texts(tmp_path, SAMPLING)))
    assert (config.num_labels, config.id2label, config.problem_type) == (1, {0: "reward"}, "regression")


def test_labels_that_the_config_of_a_policy_holds_are_not_called_reward(tmp_path: Path) -> None:
    model = tiny_policy(tiny_tokenizer())
    model.config.num_labels = 1  # as the config of distilgpt2 has it
    loading.save(model, tiny_tokenizer(), tmp_path)
    config = read(portable_files.texts(tmp_path, SAMPLING), "config.json")
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config.get("problem_type") is None


def test_everyone_who_may_read_the_config_may_read_the_weights(policy_dir: Path) -> None:
    assert (policy_dir / "model.safetensors").stat().st_mode == (policy_dir / "config.json").stat().st_mode


@pytest.mark.parametrize(
    ("rope", "flat"),
    [
        ({"rope_type": "default", "rope_theta": 1e5}, {"rope_theta": 1e5}),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
            {"rope_theta": 1e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
    ],
)
def test_rotary_embeddings_have_the_names_of_both_versions(
    rope: dict[str, Any], flat: dict[str, Any], policy_dir: Path, tmp_path: Path
) -> None:
    LlamaConfig(rope_parameters=rope).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((policy_dir / "tokenizer.json").read_bytes())
    texts = portable_files.texts(tmp_path, SAMPLING)
    config = read(texts, "config.json")
    assert {key: config.get(key) for key in flat} == flat
    assert AutoConfig.from_pretrained(published(tmp_path, texts)).rope_parameters == rope


def test_more_special_tokens_and_a_generic_class_have_the_names_of_version_4(policy_dir: Path, tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(policy_dir / "tokenizer.json"), eos_token=EOS, additional_special_tokens=["<tool>"]
    )
    loading.save(tiny_policy(tiny_tokenizer()), tokenizer, tmp_path)
    texts = portable_files.texts(tmp_path, SAMPLING)
    config = read(texts, "tokenizer_config.json")
    assert (config["tokenizer_class"], config["additional_special_tokens"]) == ("PreTrainedTokenizerFast", ["<tool>"])
    loaded = AutoTokenizer.from_pretrained(published(tmp_path, texts))
    assert loaded.convert_ids_to_tokens(loaded.encode("a <tool> b")) == ["a", "Ġ", "<tool>", "Ġb"]
    assert loaded.decode(loaded.encode("a <tool> b"), skip_special_tokens=True) == "a  b"
