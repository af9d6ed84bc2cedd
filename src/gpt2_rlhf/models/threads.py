"""Run computations of two models at the same time on a CPU, each in a thread of its own.

The operations of a small model gain nothing from a second thread, but two small models gain from a thread each. Each
computation stays as it would be alone, so the numbers are the same to the bit.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

A = TypeVar("A")
B = TypeVar("B")


def both(first: Callable[[], A], second: Callable[[], B], in_threads: bool) -> tuple[A, B]:
    """Return both results, computed at the same time on a CPU where an operation has one thread, else in turn.

    The second one has the caller's gradient mode and autocast. in_threads: False computes in turn, as what is not
    `apart` must be.
    """
    if not in_threads or torch.get_num_threads() > 1 or torch.accelerator.is_available():
        return first(), second()
    has_gradient, is_inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    is_cast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def as_caller() -> B:
        torch.set_num_threads(1)  # a new thread may begin with the number of cores
        with (
            torch.inference_mode(is_inference),
            torch.set_grad_enabled(has_gradient),
            torch.autocast("cpu", dtype, enabled=is_cast),
        ):
            return second()

    with ThreadPoolExecutor(1) as pool:  # for this call alone, since threads do not survive a fork
        of_second = pool.submit(as_caller)
        return first(), of_second.result()


def apart(*models: nn.Module) -> bool:
    """Whether no two models have a weight or a config in common.

    A pass sets the attention of its model's config, and a backward pass adds to the gradients of its weights.
    """

    def parts(model: nn.Module) -> set[int]:
        found = [*model.parameters(), *(vars(part).get("config") for part in model.modules())]
        return {id(part) for part in found if part is not None}

    return not any(one & other for one, other in itertools.combinations(map(parts, models), 2))
