"""Check the front matter of a card as POST /api/validate-yaml does; the rules approximate those of the Hub."""

from typing import Any

import yaml

_LICENSES = frozenset(
    {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "openrail", "gpl-3.0", "other"}
)
_LISTS_OR_STRINGS = ("datasets", "language", "base_model", "license")


def errors(content: str) -> list[str]:
    """Return the reasons for which the Hub refuses this README.md."""
    matter = _front_matter(content)
    if matter is None:
        return []
    try:
        fields: Any = yaml.safe_load(matter)
    except yaml.YAMLError as error:
        return [f"YAML error: {' '.join(str(error).split())}"]
    if not isinstance(fields, dict):
        return ["the metadata must be a mapping"]
    found: list[str] = []
    if fields.get("license", "mit") not in _LICENSES:
        found.append(f'"license" must be one of {sorted(_LICENSES)}')
    found += [f'"{k}" must be a string or a list' for k in _LISTS_OR_STRINGS if not _names(fields.get(k, ""))]
    if not isinstance(fields.get("tags", []), list) or not _names(fields.get("tags", [])):
        found.append('"tags" must be an array of strings')
    widget = fields.get("widget", [])
    if not isinstance(widget, list) or not all(isinstance(one, dict) and _names(one.get("text")) for one in widget):
        found.append('"widget" must be a list of examples with a text')
    index = fields.get("model-index", [])
    if not isinstance(index, list) or not all(isinstance(m, dict) and {"name", "results"} <= m.keys() for m in index):
        found.append('"model-index" must be a list of models with name and results')
    return found


def warnings(content: str) -> list[str]:
    """Return what the Hub accepts with a warning."""
    return ["empty or missing yaml metadata in repo card"] if _front_matter(content) is None else []


def _front_matter(content: str) -> str | None:
    if not content.startswith("---\n"):
        return None
    matter, fence, _ = content[4:].partition("\n---\n")
    return matter if fence else None


def _names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
