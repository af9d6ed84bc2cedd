import pytest
import torch

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.models import loading, tokens
from gpt2_rlhf.models.model_files import EMBEDDED_DIR
from helpers.tiny import tiny_tokenizer

ROW = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " No."}


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


def test_a_tokenizer_without_byte_symbols_is_refused(saved, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(saved), "get_vocab", lambda self: {"a": 0})
    with pytest.raises(UserError, match="not a byte-level BPE"):
        tokens.padding_copy(saved, "right")


def test_sft_trains_on_the_answer_and_its_eos_and_not_on_the_prompt():
    tokenizer = tiny_tokenizer()
    encoded = tokens.encode_sft(tokenizer, ROW)
    trained = [label for label in encoded["labels"] if label != -100]
    assert tokenizer.decode(encoded["input_ids"]) == ROW["prompt"] + ROW["chosen"] + str(tokenizer.eos_token)
    assert tokenizer.decode(trained) == ROW["chosen"] + str(tokenizer.eos_token)
    assert len(encoded["labels"]) == len(encoded["input_ids"])


def test_both_answers_of_a_pair_end_with_eos():
    tokenizer = tiny_tokenizer()
    encoded = tokens.encode_reward(tokenizer, ROW)
    assert tokenizer.decode(encoded["chosen_ids"]) == ROW["prompt"] + ROW["chosen"] + str(tokenizer.eos_token)
    assert tokenizer.decode(encoded["rejected_ids"]) == ROW["prompt"] + ROW["rejected"] + str(tokenizer.eos_token)


def test_encoding_prompt_and_answer_apart_gives_the_ids_of_the_joined_text(saved):
    joined = saved(ROW["prompt"] + ROW["chosen"])["input_ids"]
    assert tokens.encode_sft(saved, ROW)["input_ids"] == [*joined, tokens.eos_id(saved)]


def test_ppo_gets_the_prompt_alone(saved):
    assert saved.decode(tokens.encode_ppo(saved, ROW)["input_ids"]) == ROW["prompt"]


def test_random_weights_have_the_shape_in_the_settings_and_depend_on_the_seed_alone():
    from gpt2_rlhf.config.settings import Model

    shape = {"vocab_size": 2000, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = Model("a-shape", None, "embedded", shape)
    first, again, other = (loading.load_base(model, seed) for seed in (1, 1, 2))
    weights = [m.state_dict()["transformer.wte.weight"] for m in (first, again, other)]
    assert weights[0].shape == (2000, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
