"""Write the folders that a run hands to its user: each model with its card, settings and manifests.

`make publish` pushes the folder `model`, all of it and nothing else. No file in them names a folder of this machine.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from gpt2_rlhf.evidence import card, seeds
from gpt2_rlhf.models import portable_files
from gpt2_rlhf.store.files import read_json_lines
from gpt2_rlhf.store.portable import without_folders
from gpt2_rlhf.store.run import Run

_REPORT = "report"  # report.DIRECTORY, whose import takes time; its pictures go into `model`


def write(run: Run) -> list[Path]:
    """Write the folders of a finished run into its directory, in place of older ones, and return them."""
    stages = run.plans[0]
    records, sources = _sources(run)
    manifests = {"command": run.portable_command, "stages": records}
    texts = {
        "config.yaml": OmegaConf.to_yaml(without_folders(OmegaConf.to_container(OmegaConf.create(run.config_yaml)))),
        "manifest.json": json.dumps(manifests, indent=2, ensure_ascii=False) + "\n",
    }
    temperature = records["evaluate"]["metrics"]["temperature"]
    # not max_new_tokens, which would overrule the max_length that a user gives; transformers 4 sets top_k by itself
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for folder, name in card.FOLDERS.items():
        written = {**texts, "README.md": card.render(run.settings, sources, folder)}
        written |= portable_files.texts(stages[name].model_dir, sampling)
        files = {PurePosixPath(file.name): file for file in stages[name].model_dir.iterdir()}
        files = {path: file for path, file in files.items() if path.name not in written}
        if folder == "model":
            files |= {picture: run.directory / picture for picture in sources.pictures}
        _fill(run.directory / folder, files, written)
    return [run.directory / folder for folder in card.FOLDERS]


def cards(run: Run) -> dict[str, str]:
    """Return the card of each folder as `write` writes it."""
    _, sources = _sources(run)
    return {folder: card.render(run.settings, sources, folder) for folder in card.FOLDERS}


def _sources(run: Run) -> tuple[dict[str, Any], card.CardSources]:
    """Return the manifests of all stages and seeds by name, and what the cards are filled from."""
    of_seeds = without_folders(run.manifests())
    others = {f"{name}-seed{one['ppo']['seed']}": one[name] for one in of_seeds[1:] for name in ("ppo", "evaluate")}
    config = run.plans[0]["ppo"].model_dir / "config.json"
    sources = card.CardSources(
        command=run.portable_command,
        records=of_seeds[0],
        seeds=seeds.spread(run.settings.ppo, of_seeds),
        samples=read_json_lines(run.plans[0]["evaluate"].directory / "samples.jsonl"),
        pictures=[PurePosixPath(_REPORT, file.name) for file in sorted((run.directory / _REPORT).glob("*.png"))],
        model_type=json.loads(config.read_text(encoding="utf-8"))["model_type"],
    )
    return {**of_seeds[0], **others}, sources


def _fill(folder: Path, files: Mapping[PurePosixPath, Path], texts: Mapping[str, str]) -> None:
    """Replace a folder by one with these files and texts.

    Files are hard links where the file system allows it, so that the weights take no space twice.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    for name, file in files.items():
        place = part / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(file)
        except OSError:
            shutil.copy2(file, place)
    for name, text in texts.items():
        (part / name).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
