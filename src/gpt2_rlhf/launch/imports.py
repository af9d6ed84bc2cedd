"""Import quickly what takes seconds, such as TRL."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Within the block, do not look for garbage, nor later among what it imported; looking takes a seventh longer."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
