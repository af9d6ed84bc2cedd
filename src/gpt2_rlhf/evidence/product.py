"""Write the folders that a run hands to its user: each model with its card, settings and manifests.

`make publish` pushes the folder `model`, all of it and nothing else. No file in them names a folder of this machine.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

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
    of_seeds = without_folders(run.manifests())
    records = of_seeds[0]
    others = {f"{name}-seed{one['ppo']['seed']}": one[name] for one in of_seeds[1:] for name in ("ppo", "evaluate")}
    pictures = sorted((run.directory / _REPORT).glob("*.png"))
    sources = card.CardSources(
        command=run.portable_command,
        records=records,
        seeds=seeds.spread(run.settings.ppo, of_seeds),
        samples=read_json_lines(stages["evaluate"].directory / "samples.jsonl"),
        pictures=[PurePosixPath(_REPORT, picture.name) for picture in pictures],
    )
    manifests = {"command": run.portable_command, "stages": {**records, **others}}
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
            files |= dict(zip(sources.pictures, pictures, strict=True))
        _fill(run.directory / folder, files, written)
    return [run.directory / folder for folder in card.FOLDERS]


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
