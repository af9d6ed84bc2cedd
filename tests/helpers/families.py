"""Tiny models of other families than GPT-2, with the vocabulary and the padding of ppo_tiny."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from helpers import ppo_tiny

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_GPT_J = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "initializer_range": 0.2}
_NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2}
_PLAIN = {key: value for key, value in _LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
# Short windows, and caps and scales that matter at these weights
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": 4},
    "gemma2": {**_LLAMA, "sliding_window": 4, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
    "gpt_neox": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "qwen3": _LLAMA,
    "granite": {**_LLAMA, "logits_scaling": 3.0},
    "cohere": {**_LLAMA, "logit_scale": 0.3},
    "stablelm": _LLAMA,
    "gptj": _GPT_J,
    "gpt_neo": {**_NEO, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "falcon": {**_PLAIN, "alibi": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "mixtral": {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2_moe": {
        **_LLAMA,
        "sliding_window": 4,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "phi": _PLAIN,
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "gpt_oss": {**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
}


def policy(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family], **_special(ppo_tiny.EOS_ID))
    return without_dropout(AutoModelForCausalLM.from_config(config))


def scorer(family: str, seed: int = 1) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family], **_special(ppo_tiny.PAD_ID), num_labels=1)
    return without_dropout(AutoModelForSequenceClassification.from_config(config))


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def _special(pad_token_id: int) -> dict[str, int]:
    eos = ppo_tiny.EOS_ID
    return {"vocab_size": ppo_tiny.VOCABULARY, "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": pad_token_id}
