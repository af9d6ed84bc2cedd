"""Estimate the memory of each training stage before it starts: sizes of the model times sizes of its batches.

The most is there either while the model learns, or while it is measured beside the trained one. Counted are float32
weights, gradients, the optimizer's state, what the backward pass needs of each layer, logits, and the process itself.
Numbers of activations were counted with torch's hooks for saved tensors on ten families.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpt2_rlhf.config import methods, ppo_sizes
from gpt2_rlhf.config.settings import Peft, Settings
from gpt2_rlhf.models.shape import LOGITS_AT_ONCE, Shape

_NUMBER = 4  # bytes of a float32
_PROCESS = 490 * 2**20  # Python, torch, TRL and their kernels in a process that has trained
_PPO_PROCESS = 580 * 2**20  # one that also samples answers and measures them while it trains
_CONTEXT = 800 * 2**20  # on a GPU: CUDA's context, kernels and the workspace of cuBLAS, on an H100
_SFT_CHUNK = 256  # answer tokens of which TRL holds the logits at once
_HALF = 0.6  # of the activations under autocast, which keeps residuals and norms in float32


class Phase(NamedTuple):
    """What is in memory at one time, in numbers of float32; the fields of `Memory` but the process itself."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float


@dataclass(frozen=True)
class Lengths:
    """The rows of one table, in tokens: prompt and answer with EOS, mean of both answers; `spread` is of their sum."""

    rows: int
    prompt: float
    answer: float
    longest: int
    spread: float

    def tokens(self, rows: int) -> float:
        """Return the tokens of a batch that few batches exceed."""
        return rows * (self.prompt + self.answer) + 2 * self.spread * rows**0.5


@dataclass(frozen=True)
class Memory:
    """Bytes that one process of a stage needs at its peak, by what needs them."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    process: float

    @property
    def total(self) -> float:
        """The sum."""
        return sum(dataclasses.astuple(self))


def peak(
    name: str, settings: Settings, shape: Shape, tables: Mapping[str, Lengths], processes: int, on_gpu: bool
) -> Memory:
    """Return the memory of a training stage in one of `processes`."""
    if name in ("ppo", "rloo"):
        phases = {"ppo": _ppo, "rloo": _rloo}[name](settings, shape, tables["ppo"], processes, on_gpu)
    else:
        phases = _supervised(name, settings, shape, tables, processes, on_gpu)
    process = _CONTEXT if on_gpu else _PPO_PROCESS if name == "ppo" else _PROCESS
    return Memory(*(_NUMBER * numbers for numbers in max(phases, key=sum)), process=process)


def as_computed(name: str, rows: Lengths, shape: Shape, on_gpu: bool) -> Lengths:
    """Return the lengths that a stage computes: a reward model on a CPU a pair's prompt once (models.packing)."""
    shares = name in ("reward", "judge") and shape.packs and not on_gpu
    return dataclasses.replace(rows, prompt=rows.prompt / 2) if shares else rows


def _supervised(
    name: str, settings: Settings, shape: Shape, tables: Mapping[str, Lengths], processes: int, on_gpu: bool
) -> Iterator[Phase]:
    is_sft, rows, test = name == "sft", tables[methods.table_of(name)], tables["test"]
    text, rows = rows.prompt + rows.answer, as_computed(name, rows, shape, on_gpu)
    chosen = settings.trained_by(name)
    whole = shape.weights if name in ("sft", "dpo") else shape.reward_weights
    trained = shape.trained(chosen.peft, whole)
    weights, gradients, optimizer = _kept(settings, chosen.peft, whole, trained, trained, chosen.args, processes)
    texts = chosen.args["per_device_train_batch_size"] * (1 if is_sft else 2)
    tokens = rows.tokens(texts) if shape.packs else texts * rows.longest
    activations = _saved(shape, chosen.args, on_gpu) * tokens + _cast(chosen.args, on_gpu, whole)
    if shape.has_dropout and not on_gpu:  # three copies of the attention weights
        activations += 3 * shape.heads * shape.layers * tokens * text
    logits = 0.0
    if is_sft and chosen.args.get("loss_type") in (None, "chunked_nll"):
        logits = 5 * _SFT_CHUNK * shape.vocabulary
    elif is_sft or name == "dpo":
        logits = 3 * texts * rows.longest * shape.vocabulary
    if name == "dpo":
        yield Phase(weights + (0 if chosen.peft.r > 0 else whole), gradients, optimizer, activations, logits)
        return
    yield Phase(weights, gradients, optimizer, activations, logits)
    held_out = min(settings.evaluate.pairs, test.rows) * (1 if is_sft else 2)
    measured = min(settings.evaluate.batch_size, held_out)
    read = min(LOGITS_AT_ONCE, measured * test.longest * shape.vocabulary) if is_sft else 0
    yield Phase(weights + whole, 0, optimizer, _passing(shape) * measured * test.longest, 1.5 * read)


def _ppo(settings: Settings, shape: Shape, rows: Lengths, processes: int, on_gpu: bool) -> Iterator[Phase]:
    ppo, args = settings.ppo, settings.ppo.args
    fitted = ppo_sizes.fit(ppo, rows.rows, processes)
    policy, critic = shape.trained(ppo.peft, shape.weights), shape.reward_weights
    reference = 0 if ppo.peft.r > 0 else shape.weights
    frozen = reference + critic * (1 + settings.data.has_judge)
    if settings.launch.sharded and on_gpu:
        frozen /= 2  # they are bf16
    trained = shape.weights + critic
    weights, gradients, optimizer = _kept(settings, ppo.peft, trained, policy, policy + critic, args, processes)
    weights += frozen
    sampling_with = weights + (trained if settings.launch.sharded else 0)  # a whole copy
    sampled_with = _cast(args, on_gpu, shape.weights)
    read_with = _cast(args, on_gpu, trained + (0 if settings.launch.sharded else reference + critic))
    answer = args["response_length"]
    learning = dataclasses.replace(rows, answer=answer)
    with_logits = max(1, LOGITS_AT_ONCE // (answer * shape.vocabulary))
    device_rows = min(fitted.per_device_train_batch_size, with_logits)
    activations = 2 * _saved(shape, args, on_gpu) * learning.tokens(device_rows) + _cast(args, on_gpu, trained)
    yield Phase(weights, gradients, optimizer, activations, 2 * device_rows * answer * shape.vocabulary)
    for texts in (
        min(args["local_rollout_forward_batch_size"], fitted.episodes_per_update // processes),
        min(settings.evaluate.batch_size, fitted.withheld_prompts),
    ):
        cache = shape.cache_width * (shape.layers + 1) * texts * (rows.longest + answer)
        yield Phase(sampling_with, 0, optimizer, cache + sampled_with, 4 * texts * shape.vocabulary)
        logits = min(LOGITS_AT_ONCE, 2 * texts * answer * shape.vocabulary)
        read = _passing(shape) * learning.tokens(texts) + read_with
        yield Phase(sampling_with, 0, optimizer, read, 2 * logits)


def answers_at_once(args: Mapping[str, Any]) -> int:
    """Return how many answers one process of RLOO samples before it learns from them. args: of rloo."""
    steps = args.get("steps_per_generation") or args["gradient_accumulation_steps"]
    return args["per_device_train_batch_size"] * steps


def _rloo(settings: Settings, shape: Shape, rows: Lengths, processes: int, on_gpu: bool) -> Iterator[Phase]:
    chosen, args = settings.rloo, settings.rloo.args
    texts, answer = args["per_device_train_batch_size"], args["max_completion_length"]
    policy = shape.trained(chosen.peft, shape.weights)
    weights, gradients, optimizer = _kept(settings, chosen.peft, shape.weights, policy, policy, args, processes)
    weights += (0 if chosen.peft.r > 0 else shape.weights) + shape.reward_weights
    learning = dataclasses.replace(rows, answer=answer)
    tokens = learning.tokens(texts) if shape.packs else texts * (rows.longest + answer)
    activations = _saved(shape, args, on_gpu) * tokens + _cast(args, on_gpu, shape.weights)
    yield Phase(weights, gradients, optimizer, activations, 4 * texts * answer * shape.vocabulary)
    at_once = answers_at_once(args)
    cache = shape.cache_width * (shape.layers + 1) * at_once * (rows.longest + answer)
    yield Phase(weights, 0, optimizer, cache, 4 * at_once * shape.vocabulary)
    yield Phase(weights, 0, optimizer, _passing(shape) * learning.tokens(at_once), 0)  # the reward model reads all


def _kept(
    settings: Settings, peft: Peft, whole: int, of_policy: int, trained: int, args: Mapping[str, object], processes: int
) -> tuple[float, float, float]:
    """Return the numbers of the trained models that stay from step to step: weights, gradients, optimizer state."""
    optim = str(args.get("optim", "adamw"))
    moments = (0.5 if "8bit" in optim else 2) if "adam" in optim else 0  # the other optimizers keep less
    weights = whole + (of_policy if peft.r > 0 else 0)
    if settings.launch.sharded:
        return weights / processes, trained / processes, moments * trained / processes
    return weights, trained * (2 if processes > 1 else 1), moments * trained  # twice: DistributedDataParallel's buckets


def _saved(shape: Shape, args: Mapping[str, object], on_gpu: bool) -> float:
    """Return how many numbers a token leaves for the backward pass, in all layers."""
    layer = 10 * shape.width + 4 * shape.inner if shape.is_gated else 8 * shape.width + 2 * shape.inner
    if shape.has_dropout:
        layer += 2 * shape.width
    half = _HALF if _is_half(args, on_gpu) else 1
    if args.get("activation_checkpointing"):  # the inputs of all layers, and one layer computed again
        return shape.layers * shape.width + half * layer
    return half * shape.layers * layer


def _cast(args: Mapping[str, object], on_gpu: bool, weights: int) -> float:
    """Return what autocast's copies of the weights take, in float32 numbers."""
    return weights / 2 if _is_half(args, on_gpu) else 0


def _is_half(args: Mapping[str, object], on_gpu: bool) -> bool:
    return on_gpu and (args.get("bf16") in (None, True) or args.get("fp16") is True)  # null: where the GPU has it


def _passing(shape: Shape) -> int:
    """Return how many numbers a token needs at once in a pass without gradients."""
    return 6 * shape.width + 2 * shape.inner


def in_words(size: float) -> str:
    """Return a number of bytes as text."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
