"""MODEL_CARD.md is the card of the quickstart run as of today; CONTRIBUTING.md says how to write it again.

Nothing is trained here. A card of today's templates and settings is filled with invented figures, and everything in it
that is not a figure must be in MODEL_CARD.md as well.
"""

import dataclasses
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import card
from helpers import card_run

REPOSITORY = Path(__file__).resolve().parents[1]
FILE = REPOSITORY / "MODEL_CARD.md"
SETTINGS = compose.load([]).settings
FIGURE = re.compile(r"[+-]?\d+(\.\d+)?(e-\d+)?")


@pytest.fixture(scope="module")
def committed() -> str:
    return FILE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def today() -> str:
    """The card that today's templates and settings give, with invented figures."""
    records = card_run.records()
    for record in records.values():
        if "processes" in record["inputs"]:
            record["inputs"]["processes"] = 1
    pictures = [{"file": f"{name}.png", "title": name, "alt": name} for name in ("training", "accuracy")]
    run = dataclasses.replace(card_run.run(records), command="make pipeline", pictures=pictures)
    return card.render(SETTINGS, run)


def one_line(text: str) -> str:
    return " ".join(text.split())


def without_figures(text: str) -> str:
    return FIGURE.sub("#", text)


def tables(text: str) -> dict[tuple[str, ...], list[list[str]]]:
    """The rows of each table by its header, each row as its cells."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        found[tuple(cells[0])] = cells[2:]
    return found


def test_it_is_the_card_of_make_pipeline_without_overrides(committed: str) -> None:
    assert "```bash\nmake pipeline\n```" in committed


def test_it_has_the_headings_of_the_template(committed: str, today: str) -> None:
    def headings(text: str) -> list[str]:
        return [without_figures(line) for line in re.findall(r"^#+ .*", text, flags=re.MULTILINE)]

    assert headings(committed) == headings(today)


def test_it_has_every_sentence_that_the_template_gives_today_and_no_other_of_it(committed: str, today: str) -> None:
    template = (card.TEMPLATES / "policy.md").read_text(encoding="utf-8")
    pieces = {one_line(piece) for piece in re.split(r"{{.*?}}|{%.*?%}|\n\n", template)}
    sentences = {piece for piece in pieces if len(piece) > 20}
    shown = {sentence for sentence in sentences if sentence in one_line(today)}
    assert len(shown) > 20
    assert {sentence for sentence in sentences if sentence in one_line(committed)} == shown


def test_its_tables_have_the_columns_and_the_metrics_of_today(committed: str, today: str) -> None:
    found, expected = tables(committed), tables(today)
    assert list(found) == list(expected)
    for header in expected:
        if header[0] in ("Mean per answer", "Paired difference"):
            assert [row[0] for row in found[header]] == [row[0] for row in expected[header]]


def test_its_front_matter_is_that_of_today(committed: str, today: str) -> None:
    found, expected = (yaml.safe_load(without_figures(text.split("---\n")[1])) for text in (committed, today))
    for matter in (found, expected):  # the answers are figures of the run
        matter["widget"] = [sorted(example) for example in matter["widget"]]
    assert found == expected


def test_the_settings_that_it_shows_are_those_of_conf(committed: str, today: str) -> None:
    def settings(text: str) -> dict[str, str]:
        (rows,) = (rows for header, rows in tables(text).items() if header[0] == "Stage")
        return {row[0]: row[2] for row in rows}

    assert settings(committed) == settings(today)
    evaluate, data = SETTINGS.evaluate, SETTINGS.data
    assert (
        f"sampled with seed {evaluate.seed}, temperature {evaluate.temperature:g} and at most "
        f"{evaluate.max_new_tokens} tokens"
    ) in one_line(committed)
    assert f"At most {data.max_prompt_tokens} tokens of prompt and {data.max_answer_tokens} of answer" in committed
    assert f"Measured on {evaluate.prompts} held-out prompts" in committed
    assert f"with one training seed ({SETTINGS.seed})" in committed


def test_it_was_made_with_the_pinned_libraries(committed: str) -> None:
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split())
    rows = dict(tables(committed)["", ""])
    assert f"on [TRL {version('trl')}](" in committed
    libraries = {name: rows[name].partition("+")[0] for name in ("trl", "torch", "transformers", "accelerate")}
    assert libraries == {name: pins[name] for name in libraries}


def test_the_readme_shows_its_figures(committed: str) -> None:
    def figures(text: str, columns: int) -> dict[str, list[str]]:
        (rows,) = (rows for header, rows in tables(text).items() if header[0] == "Mean per answer")
        return {re.split(r" \(|, ", row[0])[0]: [cell for cell in row[1:columns] if "[" in cell] for row in rows}

    shown = figures((REPOSITORY / "README.md").read_text(encoding="utf-8"), columns=4)
    expected = figures(committed, columns=4)
    assert len(shown) >= 5
    assert list(shown) == [label for label in expected if label in shown]  # first what PPO is not trained on
    assert shown == {label: expected[label] for label in shown}
