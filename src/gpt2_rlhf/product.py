"""Write the folders that a run hands to its user: each model with its card, settings and manifests.

`model` is what `make publish` pushes, all of it and nothing else; `sft_model` and `reward_model` are made like it.
Nothing in them names a folder of this machine.
"""

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from gpt2_rlhf import card, config, seeds
from gpt2_rlhf.settings import Settings
from gpt2_rlhf.stage import Stage, manifest

REPORT = "report"  # of its files in the run's directory, the pictures go into `model`


def write(settings: Settings, argv: Sequence[str], by_seed: Sequence[Mapping[str, Stage]], run_dir: Path) -> list[Path]:
    """Write the folders anew, and return them.

    by_seed: the finished stages of the run for each seed of PPO's; the first one's policy is the product. run_dir:
    where the folders go; whatever they held before is gone.
    """
    stages = by_seed[0]
    of_seeds = without_folders([{name: manifest(part) for name, part in plan.items()} for plan in by_seed])
    records = of_seeds[0]
    others = {f"{name}-seed{one['ppo']['seed']}": one[name] for one in of_seeds[1:] for name in ("ppo", "evaluate")}
    pictures = sorted((run_dir / REPORT).glob("*.png"))
    run = card.Run(
        command=command(argv),
        records=records,
        seeds=(
            seeds.spread([(one["ppo"], one["evaluate"]) for one in of_seeds], settings.ppo.guard)
            if settings.ppo.seeds is not None
            else None
        ),
        samples=_samples(stages["evaluate"].directory / "samples.jsonl"),
        pictures=[PurePosixPath(REPORT, picture.name) for picture in pictures],
    )
    manifests = {"command": run.command, "stages": {**records, **others}}
    texts = {
        "config.yaml": OmegaConf.to_yaml(without_folders(OmegaConf.to_container(OmegaConf.create(config.show(argv))))),
        "manifest.json": json.dumps(manifests, indent=2, ensure_ascii=False) + "\n",
    }
    for folder, name in card.FOLDERS.items():
        files = {PurePosixPath(file.name): file for file in stages[name].model_dir.iterdir()}
        if folder == "model":
            files |= dict(zip(run.pictures, pictures, strict=True))
        _fill(run_dir / folder, files, {**texts, "README.md": card.render(settings, run, folder)})
    return [run_dir / folder for folder in card.FOLDERS]


def command(argv: Sequence[str]) -> str:
    """What builds the run again, from anywhere: without the folders of local paths, and without publishing it."""
    kept = [argument.partition("=") for argument in config.in_order(argv) if not argument.startswith("publish.")]
    return shlex.join(["make", "pipeline", *(f"{key}{sep}{_without_folder(value)}" for key, sep, value in kept)])


def without_folders(node: Any) -> Any:
    """The same with each local path in it cut to its last part: folders tell of a machine and its user."""
    if isinstance(node, Mapping):
        return {key: without_folders(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_folders(value) for value in node]
    return _without_folder(node) if isinstance(node, str) else node


def _samples(path: Path) -> list[dict[str, Any]]:
    # not splitlines: a model may write U+2028, which ends a line there and not in JSON
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _without_folder(text: str) -> str:
    quote = text[:1] if text[:1] in ("'", '"') and text[-1:] == text[:1] else ""  # Hydra's own quotes
    path = text.strip(quote) if quote else text
    return f"{quote}{Path(path).name}{quote}" if path.startswith(("/", "~", "./", "../")) else text


def _fill(folder: Path, files: Mapping[PurePosixPath, Path], texts: Mapping[str, str]) -> None:
    """Put these files and texts, and nothing else, into a folder; it is built aside and then takes the old one's place.

    Files are hard links where the file system allows: the weights take no space twice.
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
