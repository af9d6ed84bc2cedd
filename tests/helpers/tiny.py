"""Tiny models for tests: a byte-level tokenizer trained in memory, and GPT-2 models of two layers for it."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
)

from gpt2_rlhf.evidence.measured import Measured
from gpt2_rlhf.models import tokens

EOS = "<|endoftext|>"
POSITIONS = 96
_TEXTS = [
    "\n\nHuman: How do I bake bread?\n\nAssistant: Mix flour, water and salt, then bake it for an hour.",
    "\n\nHuman: What is the best way to learn chess?\n\nAssistant: Play often, and look at the games you lost.",
    "\n\nHuman: Tell me about the sea.\n\nAssistant: I do not know anything about that, sorry.",
]


def tiny_tokenizer() -> GPT2Tokenizer:
    """Return 256 byte symbols, a few merges and EOS as the last token; it pads with EOS on the right."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(_TEXTS, trainer)
    learnt = json.loads(trained.to_str())["model"]
    vocabulary = {**learnt["vocab"], EOS: len(learnt["vocab"])}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges)  # type: ignore[arg-type]  # takes pairs, not only strings
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def tiny_policy(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> GPT2LMHeadModel:
    """Return a policy of random weights that are large enough to give every token its own probability."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(_config(tokenizer)).eval()


def eos_prone(tokenizer: PreTrainedTokenizerBase, seed: int = 0, eos_bias: float = 4.0) -> GPT2LMHeadModel:
    """Return a policy whose answers sometimes end before their limit."""
    model = tiny_policy(tokenizer, seed)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(tokenizer)))
    with torch.no_grad():
        model.lm_head.bias[tokens.eos_id(tokenizer)] = eos_bias
    return model


def fixed_next_token(tokenizer: PreTrainedTokenizerBase, probabilities: Mapping[int, float]) -> GPT2LMHeadModel:
    """Return a policy that gives these next-token probabilities after every text."""
    model = tiny_policy(tokenizer)
    logits = torch.full((len(tokenizer),), -1e4)
    for token, probability in probabilities.items():
        logits[token] = np.log(probability)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(logits)
    return model


def tiny_reward(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> GPT2ForSequenceClassification:
    """Return a reward model of random weights; it reads its score at the last token that is not padding."""
    config = _config(tokenizer)
    config.num_labels = 1
    config.pad_token_id = tokens.pad_id(tokens.padding_copy(tokenizer, "right"))
    torch.manual_seed(seed)
    return GPT2ForSequenceClassification(config).eval()


def assert_same_figures(one: Measured, other: Measured) -> None:
    """Refuse figures that differ in a bit or in the type of an array."""
    for field in dataclasses.fields(Measured):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            left, right = left.tolist(), right.tolist()
        assert left == right, field.name


def _config(tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
    eos_token_id = tokens.eos_id(tokenizer)
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,  # at GPT-2's 0.02 every answer would be uniform noise
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
    )
