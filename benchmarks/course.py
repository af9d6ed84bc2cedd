"""Run the commands of docs/course.md and write the figures that it quotes: `python -m benchmarks.course`.

docs/course.json has one entry a run: its experiment, its command, the hash of the run, and its figures as the course
prints them. Stages that are built already in outputs/ are not trained again.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import methods, metrics
from gpt2_rlhf.evidence.tables import look_up, text

REPOSITORY = Path(__file__).resolve().parents[1]
COURSE = REPOSITORY / "docs/course.md"
OUTPUTS = REPOSITORY / "outputs"
FIGURE = re.compile(r"-?\d+(?:\.\d+)? (?:% )?\[-?\d+\.\d+, -?\d+\.\d+\]")  # with its interval, as pages print it
PICTURES = {4: "course_kl.png", 6: "course_overoptimised.png"}  # of the sweep or of the training, by experiment

_KNOWN = (*metrics.OF_MODEL, *metrics.OF_PAIR, *metrics.OF_PREFERENCES, *metrics.OF_REWARD_MODEL)
_UNITS = {one.key: one.unit for one in _KNOWN}
_OF_MODELS = ("utility", "judge_reward", "reward", "kl_to_sft_nats", "eos_rate", "answer_tokens")
_OF_REWARD_MODELS = (
    "accuracy",
    "baselines/longer_answer_wins",
    "baselines/best_reachable",
    "length_bias/accuracy_chosen_shorter",
)


def experiments(page: str) -> dict[int, str]:
    """Return the text of each experiment by its number."""
    found = re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return {int(number): content for number, content in found}


def commands(content: str) -> list[str]:
    """Return the lines of the bash blocks of a text."""
    blocks = re.findall(r"```bash\n(.*?)```", content, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def main() -> None:
    """Run all commands in their order, and write the figures and pictures beside the course."""
    runs: list[dict[str, Any]] = []
    for number, content in experiments(COURSE.read_text(encoding="utf-8")).items():
        for command in commands(content):
            _, verb, *overrides = shlex.split(command)
            if verb == "show":
                continue
            print(f"experiment {number}: {command}", flush=True)
            subprocess.run([sys.executable, "-m", "gpt2_rlhf", verb, *overrides], cwd=REPOSITORY, check=True)
            latest = (OUTPUTS / "latest").resolve()
            newest = newest_sweep(OUTPUTS) if verb == "sweep" else latest
            figures = dict(of_sweep(newest) if verb == "sweep" else of_run(newest))
            runs.append({"experiment": number, "command": command, "run": newest.name, "figures": figures})
            if number in PICTURES:
                picture = newest / ("sweep.png" if verb == "sweep" else "report/training.png")
                shutil.copyfile(picture, COURSE.with_name(PICTURES[number]))
    COURSE.with_suffix(".json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def newest_sweep(outputs: Path) -> Path:
    """Return the folder of the sweep whose table was written last."""
    return max((outputs / "sweeps").iterdir(), key=lambda path: (path / "sweep.json").stat().st_mtime)


def of_sweep(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield names of figures and the figures of each point."""
    for point in json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["points"]:
        for method in methods.LABELS:
            for key, value in (point.get(method) or {}).items():
                yield f"{point['label']}, {key}", shown(key, value)
        if point["best_minus_this"] is not None:
            yield f"{point['label']}, best - this", text(point["best_minus_this"])


def of_run(run_dir: Path) -> Iterator[tuple[str, str]]:
    """Yield names of figures and the figures, from the manifests of the run's stages."""
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in run_dir.glob("*/manifest.json")}
    of = {name: record["metrics"] for name, record in found.items() if "metrics" in record}
    for key in ("heldout_loss_before", "heldout_loss_after"):
        yield f"sft/{key}", shown(key, of["sft"][key])
    for name in ("reward", "judge"):
        for key in _OF_REWARD_MODELS if name in of else ():
            yield f"{name}/{key}", shown(key, look_up(of[name], key))
    if "evaluate" not in of:
        return
    results = of["evaluate"]
    for part, keys in {"": _OF_MODELS, "by_subset/helpful/": ("utility",), "by_subset/harmless/": ("utility",)}.items():
        for model in ("base", "sft", "ppo", "best_of_n"):
            for key in keys:
                path = f"{part}models/{model}/{key}"
                if (value := look_up(results, path)) is not None:
                    yield path, shown(key, value)
    for pair in ("sft_minus_base", "ppo_minus_sft", "ppo_minus_best_of_n"):
        for key in ("utility", "judge_reward", "reward"):
            if (value := look_up(results, f"paired/{pair}/{key}")) is not None:
                yield f"paired/{pair}/{key}", shown(key, value)
    for key, value in (json.loads((run_dir / "summary.json").read_text())["seeds"] or {}).get("over_seeds", {}).items():
        if key in _OF_MODELS:
            yield f"over seeds: {key}", ", ".join(shown(key, value[part]) for part in ("mean", "sd", "min", "max"))


def shown(key: str, value: Any) -> str:
    """Return a figure as the tables print it."""
    return text(value, _UNITS.get(key, "points"))


if __name__ == "__main__":
    main()
