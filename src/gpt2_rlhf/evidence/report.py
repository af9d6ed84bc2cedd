"""Turn a finished run into one page that carries its evidence: index.html, its figures as JSON, its pictures as PNG.

The page loads nothing: pictures, style and script are inside, and its content security policy lets nothing else run.
Texts of models and data sets pass Jinja's autoescape, since a preference data set may hold any text. The page can be
read without the script, which only filters the samples.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import card, card_samples, front_matter, lineage, results, verdict
from gpt2_rlhf.evidence.comparison import judge_fault, usable_measures
from gpt2_rlhf.evidence.tables import Sources, Table
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import content_sha256, read_json, read_json_lines, replacing, sha256, write_json

DIRECTORY = "report"  # in the directory of the run
PAGE = "index.html"
FIGURES = "report.json"
SAMPLES_SHOWN = 512  # of the held-out prompts; the page stays within a few megabytes, samples.jsonl has all
SAMPLES_PRINTED = 20  # of those that the filter leaves

_TEMPLATES = Path(__file__).parent / "report_page"
_OF_THE_CALL = ("wall_s", "work_s", "stages")  # keys of the summary that differ between two calls for the same run


def write(
    run_dir: Path, settings: Settings, records: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]
) -> Path:
    """Write the report of a run that is evaluated, and return the page's path.

    records: each stage's manifest by its name; their folders, and samples.jsonl, are in `run_dir`. A report of the same
    manifests by the same code is left as it is, unless a file of it is lost or damaged.
    """
    directory = run_dir / DIRECTORY
    page, figures_file = directory / PAGE, directory / FIGURES
    kept = {key: value for key, value in summary.items() if key not in _OF_THE_CALL}
    sources = {**kept, "base_model": front_matter.base_text(settings.model), "manifests": records}
    # all that decides the report; a stage's files do not change once its manifest exists
    code = sorted([Path(metrics.__file__), *Path(__file__).parent.glob("*.py"), *_TEMPLATES.iterdir()])
    digest = content_sha256([sources, [sha256(file) for file in code]])
    is_whole = digests.seal_fault(directory) is None
    if is_whole and read_json(figures_file)["inputs_sha256"] == digest:
        return page

    from gpt2_rlhf.evidence import plots  # here, since importing matplotlib takes a second

    samples = read_json_lines(run_dir / "samples.jsonl")  # the examples first
    heldout = [sample for sample in samples if sample["group"] == "heldout"]
    examples, by, method = len(samples) - len(heldout), usable_measures(summary)[0], methods.of(summary)
    tables, facts = _tables(sources), lineage.facts(sources)
    story, *pictures = [
        {"picture": one, "png": base64.b64encode(one.save(directory)).decode()}
        for one in plots.pictures(run_dir, records, heldout)
    ]
    content: dict[str, Any] = {
        "sources": sources,
        "story": story,
        "pictures": pictures,
        "tables": tables,
        "facts": facts,
        "measure": by,
        "picked": card_samples.chosen(samples, by),
        "method": method,
        "label": methods.LABELS[method],
        "judge_fault": judge_fault(summary),
        "samples": samples[: examples + SAMPLES_SHOWN],
        "examples": examples,
        "heldout": len(heldout),
        "printed": SAMPLES_PRINTED,
    }
    for name in ("style.css", "script.js"):
        text = (_TEMPLATES / name).read_text(encoding="utf-8")
        text_sha256 = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        content |= {Path(name).stem: Markup(text), f"{Path(name).stem}_sha256": text_sha256}
    with replacing(page) as file:
        file.write(card.templates(_TEMPLATES, is_html=True).get_template("index.html.j2").render(content))
    rows = [*facts, *(row for group in tables.values() for table in group for row in table.rows)]
    shown = {
        "inputs_sha256": digest,
        "verdict": verdict.verdict(sources),
        "pictures": [
            {"file": f"{DIRECTORY}/{one['picture'].file}", "title": one["picture"].title, "alt": one["picture"].alt}
            for one in (story, *pictures)
        ],
        "figures": {cell.key: cell.value for row in rows for cell in row.cells},
    }
    write_json(figures_file, shown)
    digests.seal(directory)  # last, since it marks the report as complete
    return page


def _tables(sources: Sources) -> dict[str, list[Table]]:
    """The tables of each part of the page."""
    of_models = [make(sources) for make in (results.models, results.paired, results.subsets)]
    of_seeds = [results.by_seed(sources), results.over_seeds(sources)]  # without rows where no seeds are listed
    scores = (results.accuracy, results.reward_model_faults, results.calibration)
    parts = {
        "results": [*of_models, *results.refusals_in_two(sources), *of_seeds],
        "training": [make(sources) for make in (results.sft_loss, *scores, results.heldout)],
        "lineage": lineage.lineage(sources),
    }
    return {name: [table for table in tables if table.rows] for name, tables in parts.items()}
