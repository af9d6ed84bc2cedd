"""docs/evidence.md: every figure of a section with runs in docs/evidence.json is that of one of these runs."""

import json
import re

import pytest

from benchmarks import course, evidence

SECTIONS = course.experiments(evidence.PAGE.read_text(encoding="utf-8"))
RUNS = json.loads(evidence.PAGE.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", sorted({run["section"] for run in RUNS}))
def test_each_figure_is_that_of_a_run_of_its_section(number: int) -> None:
    shown = course.FIGURE.findall(" ".join(SECTIONS[number].split()))
    known = [value for run in RUNS if run["section"] == number for value in run["figures"].values()]
    assert shown
    assert set(shown) <= set(known)


def test_each_section_names_its_commands() -> None:
    for number, text in SECTIONS.items():
        assert course.commands(text), f"section {number}"


def test_no_entry_names_a_folder_of_the_machine_that_measured() -> None:
    for run in RUNS:
        assert not re.search(r"=/|\s/", run["command"])
