import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.printable import LAYOUT, printable


@pytest.mark.parametrize("control", ["\x00", "\x07", "\r", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\ud800"])
def test_a_control_character_becomes_an_escape(control: str) -> None:
    for kept in ("", LAYOUT):
        assert printable(f"a{control}[1m", kept) == f"a{ascii(control)[1:-1]}[1m"


def test_line_breaks_and_tabs_stay_only_where_they_are_layout() -> None:
    assert printable("a\n\tb") == "a\\n\\tb"
    assert printable("a\n\tb", kept=LAYOUT) == "a\n\tb"


def test_texts_of_all_languages_stay_as_they_are() -> None:
    text = "Où est-ce\u00a0? 日本語 עברית 👩\u200d🔬 \\x1b"
    assert printable(text) == text


def test_an_error_is_one_line_whatever_the_names_in_it() -> None:
    assert str(UserError("a\nb\x1b[2J.jsonl: has no rows")) == "a\\nb\\x1b[2J.jsonl: has no rows"
