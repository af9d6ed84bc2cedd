"""Neutralise the characters with which a name or a text out of a data set could control a terminal or a page."""

import re

# C0 and C1 control characters, line and paragraph separators, marks that reverse the order of a text, half characters
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LAYOUT = "\n\t"  # the controls that a text of several lines needs


def printable(text: str, kept: str = "") -> str:
    """Return the text with its control characters as escapes such as \\x1b, but those in `kept` as they are."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)
