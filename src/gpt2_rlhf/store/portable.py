"""Take out of texts that leave this machine what only this machine has: the folders of local paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def without_folders(node: Any) -> Any:
    """Return the same JSON-like value with each local path in it cut to its file name."""
    if isinstance(node, Mapping):
        return {key: without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_folders(value) for value in node]
    return without_folder(node) if isinstance(node, str) else node


def without_folder(text: str) -> str:
    """Return a local path's file name, in Hydra's quotes where it has some; any other text unchanged."""
    quote = text[:1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else ""
    path = text.strip(quote) if quote else text
    return f"{quote}{Path(path).name}{quote}" if path.startswith(("/", "~", "./", "../")) else text
