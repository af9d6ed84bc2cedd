"""Write the figures of the newest run or sweep in a folder for docs/evidence.md.

    python -m benchmarks.evidence SECTION run OUTPUT_DIR
    python -m benchmarks.evidence SECTION sweep OUTPUT_DIR

docs/evidence.json has one entry a run: its section of the page, its command, its hash, and its figures as the page
prints them. An entry replaces that of the same section and command.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import course
from gpt2_rlhf.config import metrics
from gpt2_rlhf.evidence.tables import look_up
from gpt2_rlhf.store.run import without_folder

PAGE = course.REPOSITORY / "docs/evidence.md"


def main(section: str, kind: str, outputs: str) -> None:
    """Add the newest run or sweep below `outputs` to the JSON beside the page."""
    if kind == "sweep":
        newest = course.newest_sweep(Path(outputs))
        sections = course.experiments(PAGE.read_text(encoding="utf-8"))
        command, figures = course.commands(sections[int(section)])[0], dict(course.of_sweep(newest))
        best_of_n = json.loads((newest / "sweep.json").read_text(encoding="utf-8")).get("best_of_n") or {}
        figures |= {f"best of n, {key}": course.shown(key, one) for key, one in best_of_n.items()}
    else:
        newest = (Path(outputs) / "latest").resolve()
        command = json.loads((newest / "summary.json").read_text(encoding="utf-8"))["command"]
        figures = {**dict(course.of_run(newest)), **dict(_of_evaluation(newest))}
    words = (word.partition("=") for word in shlex.split(command) if not word.startswith("output_dir="))
    command = shlex.join(f"{key}{sep}{without_folder(value)}" for key, sep, value in words)
    entry = {"section": int(section), "command": command, "run": newest.name, "figures": figures}
    file = PAGE.with_suffix(".json")
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    others = [one for one in known if (one["section"], one["command"]) != (entry["section"], command)]
    file.write_text(
        json.dumps(sorted([*others, entry], key=lambda one: one["section"]), indent=1) + "\n", encoding="utf-8"
    )


def _of_evaluation(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield every figure of the evaluation that a table can show, in all and by subset."""
    results = json.loads((run_dir / "evaluate/manifest.json").read_text(encoding="utf-8"))["metrics"]
    for at in ("", *(f"by_subset/{name}/" for name in results["by_subset"])):
        places = [f"models/{name}" for name in results["models"]] + ["chosen"]
        pairs = [f"{'paired/' if not at else ''}{name}" for name in results["paired"]]
        for place, keys in [*((one, metrics.OF_MODEL) for one in places), *((one, metrics.OF_PAIR) for one in pairs)]:
            for metric in keys:
                path = f"{at}{place}/{metric.key}"
                if (value := look_up(results, path)) is not None:
                    yield path, course.shown(metric.key, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
