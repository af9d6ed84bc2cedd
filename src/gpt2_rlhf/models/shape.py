"""Read a model's sizes from its config and the headers of its weights: without torch, and no weights are loaded."""

import math
from dataclasses import dataclass
from typing import Any

from gpt2_rlhf.config.settings import Model, Peft
from gpt2_rlhf.models import model_checks, model_files

LOGITS_AT_ONCE = 2**26  # 256 MiB of float32; with GPT-2's vocabulary 8 rows of 160 tokens
_HEADS = ("lm_head.", "embed_out.")
# Types whose attention is not torch's SDPA called through transformers' interface; packing.py finds out by itself
_PADDED = ("bloom", "codegen", "falcon", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mpt", "stablelm", "xglm")
_LORA_DEFAULTS = ("c_attn", "q_proj", "v_proj", "query_key_value")  # of PEFT, for GPT-2, Llama and GPT-NeoX


@dataclass(frozen=True)
class Shape:
    """A causal language model: its weights by name, tied ones once, and what decides the size of its activations."""

    tensors: dict[str, tuple[int, ...]]
    layers: int
    width: int
    inner: int  # of the feed-forward layer
    heads: int
    cache_width: int  # numbers that the key-value cache holds per token and layer
    vocabulary: int
    is_gated: bool  # the feed-forward layer has three matrices, as Llama's
    has_dropout: bool  # of attention
    packs: bool  # SFT and the reward model train without padding

    @property
    def weights(self) -> int:
        """Number of weights of the language model."""
        return sum(map(math.prod, self.tensors.values()))

    @property
    def is_tied(self) -> bool:
        """Whether the output layer's weight is that of the embeddings."""
        return not any(name.startswith(_HEADS) for name in self.tensors)

    @property
    def reward_weights(self) -> int:
        """Number of weights of a reward model, which has a score in place of the output layer."""
        heads = sum(math.prod(size) for name, size in self.tensors.items() if name.startswith(_HEADS))
        return self.weights - heads + self.width

    def trained(self, peft: Peft, weights: int) -> int:
        """Return how many weights are trained: all `weights`, or about those of an adapter."""
        if peft.r == 0:
            return weights
        chosen = peft.target_modules if isinstance(peft.target_modules, list) else _LORA_DEFAULTS
        takes_all = "all-linear" in (peft.target_modules, *chosen)
        paths = {tuple(name.removesuffix(".weight").split(".")): size for name, size in self.tensors.items()}
        return peft.r * sum(
            sum(size)
            for path, size in paths.items()
            if len(size) == 2 and any(map(str.isdigit, path)) and (takes_all or path[-1] in chosen)
        )


def of(model: Model) -> Shape:
    """Return the shape of the base model; its files have been checked."""
    if model.random is not None:
        config: dict[str, Any] = {"model_type": "gpt2", "attn_pdrop": 0.1, **model.random}
        tensors = _gpt2(model.random)
    else:
        folder = model_files.folder(model.name, model)
        config, tensors = model_files.read_json(folder / "config.json"), {}
        left_out = _HEADS if config.get("tie_word_embeddings") else ()  # a file may hold both
        for path in sorted(folder.glob("model*.safetensors")):
            for name, tensor in model_checks.header(path).items():
                if len(tensor["shape"]) < 4 and not name.startswith(left_out):  # old files also hold masks
                    tensors[name] = tuple(tensor["shape"])
    width = _first(config, "n_embd", "hidden_size", "d_model")
    heads = _first(config, "n_head", "num_attention_heads", "num_heads", "n_heads") or max(1, width // 64)
    of_head = config.get("head_dim") or width // heads
    return Shape(
        tensors=tensors,
        layers=_first(config, "n_layer", "num_hidden_layers", "num_layers", "n_layers") or 1,
        width=width,
        inner=_first(config, "n_inner", "intermediate_size", "ffn_dim") or 4 * width,
        heads=heads,
        cache_width=2 * of_head * (config.get("num_key_value_heads") or heads),
        vocabulary=_first(config, "vocab_size"),
        is_gated=any("gate" in name for name in tensors),
        has_dropout=bool(config.get("attn_pdrop") or config.get("attention_dropout")),
        packs=config["model_type"] not in _PADDED,
    )


def _first(config: dict[str, Any], *names: str) -> int:
    """Return the first of these that is set, or 0; families name the same size differently."""
    return next((int(config[name]) for name in names if config.get(name)), 0)


def _gpt2(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a GPT-2 of these sizes."""
    width = sizes["n_embd"]
    inner = sizes.get("n_inner") or 4 * width
    layer = {
        "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner), "mlp.c_proj": (inner, width),
        "ln_1": (width,), "ln_2": (width,),
    }  # fmt: skip
    of_layers = {f"h.{number}.{name}": size for number in range(sizes["n_layer"]) for name, size in layer.items()}
    of_layers["ln_f"] = (width,)
    embeddings = {"wte": (sizes["vocab_size"], width), "wpe": (sizes["n_positions"], width)}
    biases = {f"{name}.bias": size[-1:] for name, size in of_layers.items()}
    return {f"{name}.weight": size for name, size in (embeddings | of_layers).items()} | biases
