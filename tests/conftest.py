"""What libraries read from the environment when they are imported, before any test imports one."""

import gc
import os
from collections.abc import Iterator

import pytest

import gpt2_rlhf  # noqa: F401 - sets the rest of the environment

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # the models are too small for two, and tests may share the machine


@pytest.fixture
def small_overheads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL collects garbage twice an update, 0.3 s to 0.1 s of training; threads wait for each other on a busy CPU."""
    import torch  # seconds, which a test without it need not wait for

    monkeypatch.setattr(gc, "collect", lambda: 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
