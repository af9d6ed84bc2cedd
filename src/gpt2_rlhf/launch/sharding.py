"""Shard a training stage's weights, gradients and optimizer over its processes (FSDP2 by Accelerate), and gather them.

Accelerate shards in place: afterwards no process has the whole model, and its modules compute only where all processes
call them together. So a whole copy without memory is made before. It is filled where the whole model is needed: for
rollouts, to measure, to save.
"""

import copy
import ctypes
import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments

_M_MMAP_THRESHOLD = -3  # mallopt(3): larger blocks are given back to the system when they are freed

# Their step takes each number of a weight alone (Adafactor's takes means over rows and columns), and their state begins
# with it (Adagrad's is made for weights that Accelerate replaces).
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop")


def arguments() -> dict[str, Any]:
    """Return fields of a TRL config: each process writes its share of a checkpoint, and no gradient is kept whole.

    Without `sync_each_batch` every device would hold the whole gradient until the last microbatch of a step.
    """
    return {
        "fsdp": True,
        "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def prepare(config: TrainingArguments) -> None:
    """Make the trainer that is built next with this TRL config shard on a CPU too, and sum up gradients in float32.

    With bf16, Accelerate would also round the loss and the gradients that are summed over the processes to bf16.
    """
    if config.fsdp:
        allow_on_cpu()
        if config.bf16:
            plugin: Any = config.fsdp_plugin_args  # typed as optional
            plugin["mixed_precision_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)


def allow_on_cpu() -> None:
    """Let the next Accelerator shard over processes without GPUs, as torch can over gloo.

    Accelerate 1.15 ignores FSDP where the kind of processes is MULTI_CPU (state.py, AcceleratorState), and elsewhere
    treats that kind as it does MULTI_GPU. Call it when the TRL config exists, which determines the kind.
    """
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        if sys.platform == "linux":
            # else glibc keeps what is freed, and a process with a share grows larger than one with the whole model
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def whole_copy(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a model that is not sharded yet, on a device, with weights that take no memory (`free`)."""
    # as deepcopy keeps them, by the id of the original: so tied weights stay tied
    copied: dict[int, Any] = {id(buffer): buffer.to(device, copy=True) for buffer in model.buffers()}
    for weight in model.parameters():
        empty = nn.Parameter(torch.empty_like(weight, device=device), requires_grad=False)
        empty.untyped_storage().resize_(0)
        copied[id(weight)] = empty
    return copy.deepcopy(model, copied)


def free(whole: nn.Module) -> None:
    """Give back the memory of a whole copy's weights."""
    for weight in whole.parameters():
        weight.untyped_storage().resize_(0)


@torch.no_grad()
def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Fill a whole copy with the weights of the sharded model; all processes call it together."""
    for shard, weight in zip(sharded.parameters(), whole.parameters(), strict=True):
        full = shard.full_tensor() if isinstance(shard, DTensor) else shard
        weight.untyped_storage().resize_(full.numel() * full.element_size())
        weight.copy_(full)


@torch.no_grad()
def scatter(whole: nn.Module, sharded: nn.Module) -> None:
    """Copy each process's share of the whole copy, which is the same in all of them, into the sharded model."""
    for shard, weight in zip(sharded.parameters(), whole.parameters(), strict=True):
        if isinstance(shard, DTensor):
            mine = distribute_tensor(weight.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)
            shard.copy_(mine)
        else:
            shard.copy_(weight)
