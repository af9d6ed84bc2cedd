"""Count on a CPU how often a host would wait for its accelerator."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# the first two are seen in inference mode, where they are not taken apart
_READS = (_aten.is_nonzero, _aten.item, _aten._local_scalar_dense, _aten.nonzero, _aten.masked_select)
_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_)  # by a mask, whose number of places is read


class Waits(TorchDispatchMode):
    """Counts within the block the operations that read a value, or a number of values, from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation and run it."""
        packet = func.overloadpacket
        by_mask = packet in _INDEXED and any(place is not None and place.dtype == torch.bool for place in args[1])
        self.count += by_mask or packet in _READS
        return func(*args, **(kwargs or {}))
