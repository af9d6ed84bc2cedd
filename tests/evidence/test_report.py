import base64
import copy
import hashlib
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpt2_rlhf.config import compose
from gpt2_rlhf.evidence import curves, plots, report
from gpt2_rlhf.store.files import read_json_lines
from helpers import report_run

SETTINGS = compose.load([]).settings
VOID = {"meta", "link", "img", "input"}


class Page(HTMLParser):
    """The elements of a page: tag, attributes, and the text within, children's included."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag, "a text has closed an element"

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def all(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


def write(run_dir: Path) -> tuple[Page, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A report's page and report.json, and what it was made of."""
    records, summary = report_run.write(run_dir)
    page = report.write(run_dir, SETTINGS, records, summary)
    figures = json.loads((run_dir / "report" / "report.json").read_text(encoding="utf-8"))
    return Page(page.read_text(encoding="utf-8")), figures, records, summary


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def written(run_dir: Path) -> tuple[Page, dict[str, Any], dict[str, Any], dict[str, Any]]:
    return write(run_dir)


@pytest.fixture
def one_picture(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Draw one empty picture instead of all, which takes seconds; counts how often."""
    drawn: list[int] = []

    def pictures(*_: object) -> list[plots.Picture]:
        drawn.append(1)
        return [plots.Picture("training.png", "title", "alt", curves.panels(1, 1, 1)[0])]

    monkeypatch.setattr(plots, "pictures", pictures)
    return drawn


def at(records: dict[str, Any], summary: dict[str, Any], key: str) -> Any:
    """The figure at a key, read from the manifests; evaluation is the evaluate stage's metrics, and so on."""
    first, _, rest = key.partition("/")
    owners = {"evaluation": "evaluate", "reward_model": "reward", "judge": "judge", "sft": "sft", "ppo": "ppo"}
    found: Any = summary.get(first)
    if first in owners:
        found = records[owners[first]]["metrics"]
    elif first == "manifests":
        found = records
    elif first == "base_model":
        found = "The bundled GPT-2"
    for part in rest.split("/") if rest else []:
        found = None if found is None else found[int(part)] if isinstance(found, list) else found.get(part)
    return 0 if found is None and "/dropped/" in key else found  # a reason that dropped no row is not listed


def readings(value: Any) -> set[str]:
    """How a figure may read: as a plain number, or as a share in percent; an estimate always with its interval."""
    if value is None:
        return {"-"}
    if isinstance(value, dict):
        ends = (value["mean"], value["low"], value["high"])
        return {"{:.2f} [{:.2f}, {:.2f}]".format(*ends), "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * e for e in ends))}
    if isinstance(value, float):
        return {f"{value:.2f}", f"{100 * value:.1f} %", f"{value:.1f} s", f"{value:.0f} MiB"}
    return {str(value)}


def test_every_figure_on_the_page_is_the_manifests(written):
    page, figures, records, summary = written
    cells = [(attributes["data-key"], text) for tag in ("td", "dd") for attributes, text in page.all(tag)
             if "data-key" in attributes]  # fmt: skip
    assert len(cells) > 150
    for key, text in cells:
        value = at(records, summary, key)
        shown = " ".join(text.split())
        assert shown in {" ".join(reading.split()) for reading in readings(value)}, key
        assert figures["figures"][key] == value, key
    assert {key for key, _ in cells} == set(figures["figures"])
    assert None in figures["figures"].values()  # what is shown as unknown is kept by key, too


def test_the_figures_of_the_verdict_are_those_of_the_tables(written):
    page, figures, *_ = written
    (sentence,) = [text for attributes, text in page.all("p") if attributes.get("class") == "verdict"]
    assert sentence == figures["verdict"]
    shown = {reading for value in figures["figures"].values() for reading in readings(value)}
    notes = " ".join(text for attributes, text in page.all("p") if attributes.get("class") == "note")
    quoted = re.findall(r"-?[\d.]+ \[[^]]+\]", f"{sentence} {notes}")
    assert len(quoted) >= 4  # one in the verdict, and one for each measure
    assert set(quoted) <= shown


def test_no_figure_of_the_results_stands_without_its_interval_and_n(written):
    page, _, records, summary = written
    rows: list[list[tuple[str, dict[str, str | None], str]]] = []
    for tag, attributes, text in page.elements:
        if tag == "tr":
            rows.append([])
        elif tag == "td" and rows:
            rows[-1].append((tag, attributes, "".join(text)))
    estimates = 0
    for row in rows:
        counts = row[-1][2].split(", ")
        for place, (_, attributes, text) in enumerate(row):
            value = at(records, summary, key) if (key := attributes.get("data-key")) else None
            if isinstance(value, dict):
                assert int(counts[place] if len(counts) > 1 else counts[0]) == value["n"], key
                assert "[" in text
                estimates += 1
    assert estimates > 100


def test_hostile_texts_are_text(written):
    page, _, records, _ = written
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("svg")
    assert not page.all("b")
    texts = [text for attributes, text in page.all("p") if "text" in (attributes.get("class") or "").split()]
    for hostile in report_run.HOSTILE:
        escaped = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in hostile)
        assert any(escaped in text for text in texts)
    assert not {"\x07", "\x1b", "\u202e"} & {one for text in texts for one in text}
    for tag, attributes, _ in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert records["data"]["metrics"]["source"] in {text for _, text in page.all("dd")}


def test_the_page_loads_nothing_and_its_policy_lets_only_its_own_script_and_style_run(written):
    page, *_ = written
    links = [value for _, attributes, _ in page.elements for name in ("src", "href") if (value := attributes.get(name))]
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    policy = next(str(a["content"]) for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        ((_, text),) = page.all(tag)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
        assert "unsafe" not in policy


def test_the_plots_are_inside_the_page_beside_it_and_described(written, run_dir):
    page, figures, *_ = written
    images = [attributes for attributes, _ in page.all("img")]
    files = {file.read_bytes() for file in (run_dir / "report").glob("*.png")}
    assert {base64.b64decode(str(one["src"]).partition(",")[2]) for one in images} == files
    assert len(files) == 9
    assert [(run_dir / one["file"]).is_file() for one in figures["pictures"]] == [True] * 9
    assert [one["alt"] for one in figures["pictures"]] == [attributes["alt"] for attributes in images]
    for attributes, content in zip(images, files, strict=True):
        assert re.search(r"\d\.\d", str(attributes["alt"])), "it states a finding"
        with Image.open(io.BytesIO(content)) as image:
            assert image.size[0] == 900


def test_the_verdict_the_picture_and_the_picked_examples_come_first_and_the_rest_is_folded(written):
    page, *_ = written
    order = [
        (tag, attributes.get("class") or "")
        for tag, attributes, _ in page.elements
        if tag in ("img", "details", "article") or attributes.get("class") == "verdict"
    ]
    assert order[:5] == [("p", "verdict"), ("img", ""), *[("article", "picked")] * 3]
    assert order[5] == ("details", "")
    headings = [text for tag, _, texts in page.elements if tag in ("h1", "h2") for text in ["".join(texts)]]
    assert headings == [
        "What PPO changed",
        "Verdict",
        f"3 of {report_run.PROMPTS} held-out prompts",
        "Results",
        "Training",
        "Samples",
        "Lineage",
    ]
    assert [text for _, text in page.all("summary")] == headings[3:]
    assert not [attributes for attributes, _ in page.all("details") if "open" in attributes]


def test_the_picked_examples_have_the_answers_of_base_sft_and_ppo_in_this_order_and_a_link_to_the_whole(written):
    page, *_ = written
    picked = [(a, text) for a, text in page.all("article") if a["class"] == "picked"]
    names = []
    for _, text in picked:
        names.append(text.split(":")[0].strip())
        assert text.index("Base") < text.index("SFT") < text.index("PPO")
        assert text.count("utility") == 4  # the change, and each answer's
    assert names == ["Largest gain", "Median", "Largest loss"]
    changes = {
        a["id"]: float(str(a["data-change"])) for a, _ in page.all("article") if a.get("data-group") == "heldout"
    }
    links = [str(a["href"])[1:] for a, _ in page.all("a") if "sample-" in str(a["href"])]
    by_change = sorted(changes, key=changes.__getitem__)
    assert links == [by_change[-1], by_change[(len(by_change) - 1) // 2], by_change[0]]


def test_samples_say_who_got_better_and_can_be_read_without_the_script(written):
    page, *_ = written
    samples = [(a, text) for a, text in page.all("article") if "sample" in str(a["class"]).split()]
    with_groups = [attributes["data-group"] for attributes, _ in samples]
    assert with_groups == ["example"] * 2 + ["heldout"] * report_run.PROMPTS
    for attributes, text in samples:
        change = float(str(attributes["data-change"]))
        fate = "unknown" if attributes["data-group"] == "example" else "better" if change > 0 else "worse"
        assert attributes["data-fate"] == fate
        assert fate == "unknown" or f"got {fate}: utility {change:+.2f}" in text
        assert "hidden" not in attributes
    assert "hidden" in page.all("form")[0][0]


def test_a_report_is_written_again_only_if_a_manifest_has_changed_or_a_file_is_damaged(tmp_path, one_picture):
    records, summary = report_run.write(tmp_path)
    page = report.write(tmp_path, SETTINGS, records, summary)
    assert len(one_picture) == 1
    called_again = {**summary, "wall_s": 1.0, "work_s": 0.0, "stages": {"ppo": {"reused": True}}}
    assert report.write(tmp_path, SETTINGS, records, called_again) == page
    assert len(one_picture) == 1
    changed = copy.deepcopy(records)
    changed["ppo"]["finished_at"] = "2027-01-01 00:00:00 UTC"
    report.write(tmp_path, SETTINGS, changed, summary)
    assert len(one_picture) == 2
    content = page.read_bytes()
    page.write_bytes(content[:-1])
    (tmp_path / "report" / "report.json").write_text("{")
    report.write(tmp_path, SETTINGS, changed, summary)
    assert page.read_bytes() == content
    assert len(one_picture) == 3
    assert not list((tmp_path / "report").glob(".*"))


def test_a_run_without_judge_utility_best_of_n_seeds_or_heldout_prompts_has_a_report(tmp_path):
    records, summary = report_run.write(tmp_path)
    evaluation = records["evaluate"]["metrics"]
    del records["judge"], evaluation["models"]["best_of_n"], evaluation["paired"]["ppo_minus_best_of_n"]
    for figures in [*evaluation["models"].values(), *evaluation["paired"].values()]:
        figures |= dict.fromkeys(("judge_reward", "utility"))
    for figures in evaluation["models"].values():
        figures |= {key: None for key in figures if key.endswith(("_by_judge", "_by_utility"))}
    for figures in evaluation["paired"].values():
        figures |= dict.fromkeys(("by_judge", "length_matched", "reward_sd"))
    records["ppo"]["metrics"]["heldout"] = None
    for file in (tmp_path / "ppo" / "heldout").iterdir():
        file.unlink()
    summary |= {"judge": None, "seeds": None}
    page = Page(report.write(tmp_path, SETTINGS, records, summary).read_text(encoding="utf-8"))
    assert len(page.all("img")) == 8
    assert "no withheld prompts were measured" in str(page.all("img")[0][0]["alt"])
    rows = {text for attributes, text in page.all("th") if attributes["scope"] == "row"}
    assert {"Reward", "Reward rose", "Wins vs SFT by reward"} <= rows
    assert not [row for row in rows if row.endswith(("by judge", "by utility"))]
    assert not {"Utility", "Judge's reward", "Judge: rose", "Judge"} & rows


def test_the_page_shows_all_win_rates_and_who_chose_the_policy(tmp_path, one_picture):
    records, summary = report_run.write(tmp_path)
    for by in (None, "judge"):
        summary["ppo"]["chosen_by"] = by
        page = Page(report.write(tmp_path, SETTINGS, records, summary).read_text(encoding="utf-8"))
        sentence = "The judge also chose the policy that was handed on, so its figures for PPO are optimistic."
        assert (sentence in {text for _, text in page.all("p")}) == (by is not None)
    labels = [text for attributes, text in page.all("th") if attributes["scope"] == "row" and text.startswith("Wins")]
    assert labels[:3] == ["Wins vs SFT by utility", "Wins vs SFT by judge", "Wins vs SFT by reward"]
    models = records["evaluate"]["metrics"]["models"]
    for by in ("utility", "judge"):
        key = f"win_rate_vs_sft_by_{by}"
        (shown,) = (text for a, text in page.all("td") if a.get("data-key") == f"evaluation/models/ppo/{key}")
        assert shown.startswith(f"{100 * models['ppo'][key]['mean']:.1f}\u00a0%")


def test_the_score_of_a_function_of_the_user_is_not_called_the_reward(tmp_path, monkeypatch):
    records, summary = report_run.write(tmp_path)
    records["ppo"]["inputs"]["ppo"] = {"reward": {"function": "mine:score"}}
    story, *_ = plots.pictures(tmp_path, records, read_json_lines(tmp_path / "samples.jsonl")[2:])
    assert "function's score changed by 2.00" in story.alt
    assert ", reward" not in story.alt
    monkeypatch.setattr(plots, "pictures", lambda *_: [story])
    page = Page(report.write(tmp_path, SETTINGS, records, summary).read_text(encoding="utf-8"))
    notes = {text for _, text in page.all("p")}
    assert "PPO was trained to raise the score of mine:score, not the reward model's." in notes
    assert not [text for text in notes if "which PPO is trained to raise" in text]
    labels = [text for attributes, text in page.all("th") if attributes["scope"] == "row"]
    assert labels.count("Function's score") == 1


def test_the_page_says_how_many_of_many_samples_it_shows(tmp_path, monkeypatch, one_picture):
    monkeypatch.setattr(report, "SAMPLES_SHOWN", 5)
    page, *_ = write(tmp_path)
    assert len([a for a, _ in page.all("article") if "sample" in str(a["class"]).split()]) == 2 + 5
    assert any("the first 5 of" in text for _, text in page.all("p"))


def test_showing_a_finished_run_imports_neither_matplotlib_nor_torch():
    code = "import sys, gpt2_rlhf.pipeline; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
    code = code.replace("gpt2_rlhf.pipeline", "gpt2_rlhf.evidence.plots")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['matplotlib']\n"
