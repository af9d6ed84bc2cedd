"""Write the folders that a run hands to its user: each model with its card, settings and manifests.

`make publish` pushes the folder `model`, all of it and nothing else. No file in them names a folder of this machine.
"""

import contextlib
import filecmp
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_rlhf.config import compose, methods
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.evidence import card, report, summary
from gpt2_rlhf.models import portable_files
from gpt2_rlhf.store import digests
from gpt2_rlhf.store.files import content_sha256, read_json, read_json_lines, unfinished, unused, write_json
from gpt2_rlhf.store.run import Run, without_folders

_WRITTEN = ".written.json"  # size and time of each file of a folder as it was written; hidden, so never pushed


def write(run: Run) -> list[Path]:
    """Write the folders of a finished run into its directory, in place of older ones, and return them.

    Folders that would come out the same, and that nobody has changed since, are left as they are.
    """
    records, sources = _sources(run)
    manifests = {"command": sources.command, "stages": records}
    texts = {
        "config.yaml": compose.yaml(without_folders(run.values)),
        "manifest.json": json.dumps(manifests, indent=2, ensure_ascii=False) + "\n",
    }
    temperature = records["evaluate"]["metrics"]["temperature"]
    # not max_new_tokens, which would overrule the max_length that a user gives; transformers 4 sets top_k by itself
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    stage_of = card.folders(run.settings.method)
    folders = [run.directory / name for name in stage_of]
    for folder in folders:
        model_dir = run.plans[0][stage_of[folder.name]].model_dir
        own = {**texts, "README.md": card.render(run.settings, sources, folder.name)}
        own |= portable_files.texts(model_dir, sampling)
        files = {file.name: file for file in model_dir.iterdir() if file.name not in own}
        if folder.name == "model":
            files |= {one["file"]: run.directory / one["file"] for one in sources.pictures}
        _fill(folder, files, own)
    return folders


def cards(run: Run) -> dict[str, str]:
    """Return the card of each folder as `write` writes it."""
    _, sources = _sources(run)
    return {folder: card.render(run.settings, sources, folder) for folder in card.folders(run.settings.method)}


def _sources(run: Run) -> tuple[dict[str, Any], card.CardSources]:
    """Return the manifests of all stages and seeds by name, and what the cards are filled from."""
    of_seeds = without_folders(run.manifests())
    method = run.settings.method
    others = {f"{name}-seed{one[method]['seed']}": one[name] for one in of_seeds[1:] for name in (method, "evaluate")}
    config = run.plans[0][method].model_dir / "config.json"
    figures = run.directory / report.DIRECTORY / report.FIGURES
    sources = card.CardSources(
        command=run.portable_command,
        records=of_seeds[0],
        seeds=summary.spread(run.settings.ppo, of_seeds),
        samples=read_json_lines(run.plans[0]["evaluate"].directory / "samples.jsonl"),
        # reports of earlier versions list none
        pictures=read_json(figures).get("pictures", []) if figures.exists() else [],
        model_type=read_json(config)["model_type"],
    )
    return {**of_seeds[0], **others}, sources


def check(folder: Path) -> None:
    """Read every byte of the weights in one of these folders, and compare them with the manifest of their stage.

    Raises:
        UserError: a file is lost or damaged.
    """
    record = folder / "manifest.json"
    if not record.is_file():
        return
    stages = read_json(record)["stages"]
    for name, expected in stages[card.folders(methods.of(stages))[folder.name]]["weights_sha256"].items():
        path = folder / name
        if not path.is_file() or digests.digest(path) != expected:
            if path.is_file():
                path.touch()  # the next run reads large weights only if they are newer than their manifest
            raise UserError(f"{path}: not the weights that were trained; the command of the run builds them again")


def _fill(folder: Path, files: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Replace a folder by one with these files and texts; what the user changed or added in the old one is kept."""
    digest = content_sha256([texts, {name: _stamp(file) for name, file in files.items()}])
    if folder.is_dir() and written(folder) == {"inputs_sha256": digest, "files": _stamps(folder)}:
        return
    part, old = unfinished(folder), unfinished(folder.with_name(f"{folder.name}-old"))
    shutil.rmtree(part, ignore_errors=True)
    for name, file in files.items():
        place = part / name
        place.parent.mkdir(parents=True, exist_ok=True)
        _link_or_copy(file, place)
    for name, text in texts.items():
        (part / name).write_text(text, encoding="utf-8")
    write_json(part / _WRITTEN, {"inputs_sha256": digest, "files": _stamps(part)})
    if folder.exists():
        _keep_changes(folder, part)
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _link_or_copy(file: Path, place: Path) -> None:
    """Hard-link weights, which then take no space twice; an edit of another file must not change the stage's own."""
    if file.suffix == ".safetensors":
        with contextlib.suppress(OSError):  # not every file system has hard links
            place.hardlink_to(file)
            return
    shutil.copy2(file, place)


def _keep_changes(folder: Path, new: Path) -> None:
    """Move what this program has not written out of a folder that is about to be replaced, and print where it is."""
    as_written = written(folder).get("files", {})
    kept = unused(folder.with_name(f"{folder.name}-kept"))
    changed = [name for name, stamp in _stamps(folder).items() if as_written.get(name) != stamp]
    unchanged, _, _ = filecmp.cmpfiles(folder, new, changed, shallow=False)
    changed = [name for name in changed if name not in unchanged]
    for name in changed:
        place = kept / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(place)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        print(f"{folder}: what you changed or added is now in {kept}: {', '.join(changed[:3])}{more}", flush=True)


def written(folder: Path) -> dict[str, Any]:
    """Return the record of a folder as it was written: what it was made of, and its files; empty if there is none."""
    try:
        return dict(read_json(folder / _WRITTEN))
    except (OSError, ValueError, TypeError):
        return {}


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Return the size and time of each file and link below a folder, but of the record itself."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())
    return {path.relative_to(folder).as_posix(): _stamp(path) for path in files if path != folder / _WRITTEN}


def _stamp(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]
