import math
import sys
from pathlib import Path

import pytest

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.functions import fingerprint, load_utility


@pytest.mark.parametrize("path", ["no_such_module:f", "math:no_such_function", "math", "", ":f"])
def test_a_utility_that_cannot_be_imported_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"data\.utility: .*give package\.module:function"):
        load_utility(path)


def test_a_utility_is_imported_by_its_path_and_null_means_none() -> None:
    assert load_utility("math:atan2") is math.atan2
    assert load_utility(None) is None


def test_a_function_in_the_current_folder_is_found_by_the_script_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here_only.py").write_text("def score(prompt, answer):\n    return 1.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(tmp_path))])
    found = load_utility("here_only:score")
    assert found is not None
    assert found("", "") == 1.5
    assert str(fingerprint("here_only:score")).startswith("here_only:score@")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:\n", "SyntaxError: "),
        ("raise SystemExit('not today')\n", "SystemExit: not today"),
        ("1 / 0\n", "ZeroDivisionError: "),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
    ],
)
def test_whatever_a_module_does_when_it_is_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    name = f"broken_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert fingerprint(f"{name}:f") is not None
    with pytest.raises(UserError) as refused:
        load_utility(f"{name}:f")
    assert f"cannot be imported ({words}" in str(refused.value)
    assert "\n" not in str(refused.value)


MODULE = """
import math
from typing import Any
import helper_of_mine
def score(prompt, answer):
    from pack_of_mine import part
    import plain_folder.part
    return 1.0
"""


@pytest.mark.parametrize(
    ("changed", "is_covered"),
    [
        ("mine.py", True),
        ("helper_of_mine.py", True),
        ("constants_of_mine.py", True),
        ("pack_of_mine/__init__.py", True),
        ("pack_of_mine/part.py", True),
        ("pack_of_mine/deep.py", True),
        ("plain_folder/part.py", True),
        ("plain_folder/beside.py", True),
        ("unrelated.py", False),
        ("pack_of_mine/unrelated.py", False),
    ],
)
def test_an_edit_of_the_module_or_of_what_it_imports_from_its_folder_changes_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, is_covered: bool
) -> None:
    (tmp_path / "pack_of_mine").mkdir()
    (tmp_path / "plain_folder").mkdir()
    for name, source in {
        "mine.py": MODULE,
        "helper_of_mine.py": "import constants_of_mine as c, mine\n",
        "constants_of_mine.py": "SIGN = 1\n",
        "unrelated.py": "SIGN = 1\n",
        "pack_of_mine/__init__.py": "",
        "pack_of_mine/part.py": "from . import deep\n",
        "pack_of_mine/deep.py": "from .. import nothing\n",
        "pack_of_mine/unrelated.py": "",
        "plain_folder/part.py": "from plain_folder import beside\n",
        "plain_folder/beside.py": "from .no_such import *\n",
    }.items():
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    before = fingerprint("mine:score")
    assert before == fingerprint("mine:score")
    with (tmp_path / changed).open("a") as file:
        file.write("# edited\n")
    assert (fingerprint("mine:score") != before) == is_covered
    (tmp_path / changed).write_text("def score(:")  # no fault of the fingerprint
    assert fingerprint("mine:score") != before or not is_covered


@pytest.mark.parametrize(("folder", "is_covered"), [("project", True), ("site-packages", False)])
def test_of_installed_libraries_only_the_functions_own_is_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, is_covered: bool
) -> None:
    pack, beside = tmp_path / folder / f"pack_in_{folder[:4]}", tmp_path / folder / "library.py"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(f"from {pack.name}.scores import score\n")
    (pack / "scores.py").write_text("import library\n")
    beside.write_text("")
    monkeypatch.syspath_prepend(tmp_path / folder)

    def fingerprints() -> tuple[str | None, str | None]:
        (pack / "__init__.py").write_text("")  # finding a module of a package imports the package
        inner = fingerprint(f"{pack.name}.scores:score")
        (pack / "__init__.py").write_text(f"from {pack.name}.scores import score\n")
        return fingerprint(f"{pack.name}:score"), inner

    before = fingerprints()
    beside.write_text("SIGN = -1\n")
    assert (fingerprints() != before) == is_covered
    before = fingerprints()
    (pack / "scores.py").write_text("SIGN = -1\n")
    assert all(one != other for one, other in zip(before, fingerprints(), strict=True))


def test_a_function_without_source_counts_by_name() -> None:
    for path in ("math:atan2", "no_such_module:f", "", None):
        assert fingerprint(path) == path


def test_a_function_in_a_folder_without_an_init_file_is_covered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scores_of_mine").mkdir()
    (tmp_path / "scores_of_mine" / "length.py").write_text("from scores_of_mine import helper\n")
    (tmp_path / "scores_of_mine" / "helper.py").write_text("SIGN = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = fingerprint("scores_of_mine.length:score")
    (tmp_path / "scores_of_mine" / "helper.py").write_text("SIGN = -1\n")
    assert fingerprint("scores_of_mine.length:score") != before
