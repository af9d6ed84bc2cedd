"""Turn a finished run into one page that carries its evidence: index.html, its figures as JSON, its pictures as PNG.

The page loads nothing: pictures, style and script are inside, and its content security policy lets nothing else run.
What models and data sets wrote reaches it through Jinja's autoescape alone, since a preference data set may hold any
text. All of it is readable without the script, which only filters the samples.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gpt2_rlhf.config.settings import Settings
from gpt2_rlhf.evidence import lineage, report_tables
from gpt2_rlhf.evidence.verdict import verdict
from gpt2_rlhf.store.files import write_json

DIRECTORY = "report"  # within the run's
PAGE = "index.html"
FIGURES = "report.json"
SAMPLES_SHOWN = 512  # of the held-out prompts; the page stays within a few megabytes, samples.jsonl has all
SAMPLES_PRINTED = 20  # of those that the filter leaves

_TEMPLATES = Path(__file__).parent / "report_page"
_OF_THE_CALL = ("wall_s", "work_s", "stages")  # of the summary: what differs between two calls that show the same run


def write(
    run_dir: Path, settings: Settings, records: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any]
) -> Path:
    """Write the report of a run that is evaluated, and return the page's path.

    records: each stage's manifest by its name; their folders, and samples.jsonl, are in `run_dir`. A report that was
    made of the same manifests by the same code is left as it is, within milliseconds.
    """
    directory = run_dir / DIRECTORY
    page, figures_file = directory / PAGE, directory / FIGURES
    kept = {key: value for key, value in summary.items() if key not in _OF_THE_CALL}
    sources = {**kept, "base_model": _base_model(settings), "manifests": records}
    inputs_sha256 = _inputs_sha256(sources)
    if page.is_file() and figures_file.is_file():
        written = json.loads(figures_file.read_text(encoding="utf-8"))
        if written["inputs_sha256"] == inputs_sha256:
            return page

    from gpt2_rlhf.evidence import plots  # matplotlib takes a second, which a report that is up to date need not wait

    directory.mkdir(exist_ok=True)
    with (run_dir / "samples.jsonl").open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    heldout = [sample for sample in samples if sample["group"] == "heldout"]
    pictures = [
        {"title": one.title, "alt": one.alt, "uri": _data_uri(one.save(directory)), "file": one.file}
        for one in plots.pictures(run_dir, records, heldout)
    ]
    tables = {
        "results": report_tables.results(sources),
        "training": report_tables.training(sources),
        "lineage": lineage.lineage(sources),
    }
    facts = lineage.facts(sources)
    html = _render(
        {
            "summary": kept,
            "verdict": verdict(summary),
            "pictures": pictures,
            "tables": tables,
            "facts": facts,
            "samples": _shown(samples),
            "examples": len(samples) - len(heldout),
            "heldout": len(heldout),
            "printed": SAMPLES_PRINTED,
        }
    )
    part = directory / f".{PAGE}.tmp"
    part.write_text(html, encoding="utf-8")
    part.replace(page)
    every_table = [table for group in tables.values() for table in group]
    write_json(  # last: it says that all the rest is there
        figures_file,
        {
            "inputs_sha256": inputs_sha256,
            "verdict": verdict(summary),
            "figures": report_tables.shown(every_table, facts, sources),
        },
    )
    return page


def _render(content: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    own = {
        "style": Markup(style),
        "script": Markup(script),
        "style_sha256": _csp_hash(style),
        "script_sha256": _csp_hash(script),
    }
    return environment.get_template("index.html.j2").render({**content, **own})


def _shown(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The examples and the first held-out samples, with what PPO changed in reward against SFT."""
    examples = [sample for sample in samples if sample["group"] == "example"]
    heldout = [sample for sample in samples if sample["group"] == "heldout"][:SAMPLES_SHOWN]
    shown = []
    for sample in [*examples, *heldout]:
        change = sample["answers"]["ppo"]["reward"] - sample["answers"]["sft"]["reward"]
        shown.append({**sample, "change": change})
    return shown


def _inputs_sha256(sources: Mapping[str, Any]) -> str:
    """Of all that decides the report. Manifests stand for the stages' files, which do not change once these exist."""
    digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode())
    for file in sorted([*Path(__file__).parent.glob("*.py"), *_TEMPLATES.iterdir()]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _base_model(settings: Settings) -> str:
    model = settings.model
    name = model.name if model.revision is None else f"{model.name} at revision {model.revision}"
    return name if model.random is None else f"{name}, random weights"


def _csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
