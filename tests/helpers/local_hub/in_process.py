"""The local Hub for the client of this process, whose settings are read when it is imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from helpers.local_hub.server import Hub


def settings(address: str, cache: Path) -> dict[str, Any]:
    """What huggingface_hub makes at its import of an environment with this address and cache."""
    return {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
    }


@contextmanager
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process reaches, with an empty cache."""
    huggingface_hub.close_session()  # a client reads the settings when it is made
    with Hub() as running:
        for name, value in {**settings(running.address, cache), "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setattr("time.sleep", lambda _: None)  # between the tries of huggingface_hub
        yield running
    huggingface_hub.close_session()
