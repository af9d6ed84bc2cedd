"""Push the newest run's model to the Hub in one commit, and see that what arrived is what was sent and loads.

    python -m gpt2_rlhf.publish publish.repo_id=user/name [key=value ...]

Three steps per repository, each repeated until it succeeds or cannot (tries.py): push commits the folder and
compares the hashes that the Hub lists; fetch downloads it into a fresh cache and compares again; load opens it by
name. Pushing the same files again makes no commit. Whatever fails, everything stays on disk.
"""

import dataclasses
import os
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Publish, Settings
from gpt2_rlhf.evidence import product
from gpt2_rlhf.hub import tries
from gpt2_rlhf.hub.tries import Job, Patience
from gpt2_rlhf.models import model_files
from gpt2_rlhf.store.run import Run, latest
from gpt2_rlhf.store.stage import is_done

CHECKS = ("fetch", "load")  # of what was pushed, as steps of hub_worker.py
_SPARE_BYTES = 100_000_000  # for what else writes to the disk in the meantime


@dataclass(frozen=True)
class Target:
    """One folder of a run and the repository it goes to."""

    setting: str
    repo_id: str
    folder: str  # below outputs/latest
    model_class: str  # of transformers


def targets(publish: Publish) -> list[Target]:
    """What these settings ask to push, empty for nothing."""
    policy = Target("publish.repo_id", publish.repo_id or "", "model", "AutoModelForCausalLM")
    reward = Target(
        "publish.reward_repo_id", publish.reward_repo_id or "", "reward_model", "AutoModelForSequenceClassification"
    )
    asked = {policy: publish.repo_id, reward: publish.reward_repo_id}
    return [target for target, repo_id in asked.items() if repo_id is not None]


def check(settings: Settings, patience: Patience = tries.LOOKING) -> None:
    """Refuse, before anything is trained, what would fail after it; print a line for each repository. Writes nothing.

    Raises:
        UserError: a name that is none or of somebody else, no token or one that may not write, a repository that is
            not as private as asked, a disk without room for the copy that is loaded back, a Hub out of reach.
    """
    asked = targets(settings.publish)
    if len({target.repo_id for target in asked}) < len(asked):
        raise UserError(f"publish.reward_repo_id: {asked[0].repo_id} takes the policy; wanted another name")
    config_of_base = model_files.check(settings.model)
    for target in asked:
        _look(settings.publish, target, weights_bytes(config_of_base), "about ", patience)


def weights_bytes(model_config: Mapping[str, Any]) -> int:
    """Bytes of the float32 weights of a decoder with that compose.json, nearly.

    12 width^2 in a layer (Kaplan et al. 2020, arXiv:2001.08361, table 1), and embeddings of tokens and positions.
    """
    width = model_config.get("n_embd", model_config.get("hidden_size", 0))
    layers = model_config.get("n_layer", model_config.get("num_hidden_layers", 0))
    rows = model_config.get("vocab_size", 0) + model_config.get("n_positions", 0)
    return 4 * (12 * layers * width**2 + rows * width)


def files_below(folder: Path, root: Path) -> dict[str, str]:
    """The files to push, as path in the repository: path on disk; without hidden ones, which are half-written.

    Files may be links into the stage store. Nothing outside `root`, the run's output_dir, is followed to.

    Raises:
        UserError: a link leads to a folder or out of `root`, or there is nothing to push.
    """
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        for name in folders:
            if Path(parent, name).is_symlink():
                raise UserError(f"{Path(parent, name)}: a link to a folder is not pushed; wanted files")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if not path.resolve().is_relative_to(root.resolve()):
                raise UserError(f"{path}: it links to {path.resolve()}, outside of {root}; put a copy in its place")
            found[path.relative_to(folder).as_posix()] = str(path)
    if not found:
        raise UserError(f"{folder}: there is nothing to push; run `make pipeline` first")
    return found


def push_run(settings: Settings, patience: Patience = tries.PUBLISHING, checks: Sequence[str] = CHECKS) -> None:
    """Push the newest run to each repository that is asked for, check it there, and print a line for each.

    Raises:
        UserError: there is no finished run, or one of the steps failed; what is on disk is as before.
    """
    root = Path(settings.output_dir)
    for target in targets(settings.publish):
        files = files_below(_folder(root, target), root)
        _require_room(total_bytes(files))
        print(
            f"publish: pushing {len(files)} files, {_mb(total_bytes(files))}, to {target.repo_id} "
            f"({_visibility(settings.publish)})",
            flush=True,
        )
        if not _names(files, target.repo_id):
            print(
                f"publish: the card does not name {target.repo_id}, so its snippet loads something else; "
                f"`make pipeline {target.setting}={target.repo_id}` with the run's overrides writes it anew, and "
                "trains nothing",
                flush=True,
            )
        with tempfile.TemporaryDirectory(prefix="gpt2-rlhf-publish-") as cache_dir:
            job = _job(settings.publish, target, files, _run_of(root), cache_dir)
            pushed = tries.run(job, patience)
            at = f"{target.repo_id} at commit {pushed['commit'][:12]}"
            arrived = dataclasses.replace(job, commit=pushed["commit"])
            for step in checks:
                try:
                    tries.run(dataclasses.replace(arrived, step=step), patience)
                except UserError as error:
                    raise UserError(f"{at} was pushed, but the check of it failed: {error}") from error
        print(_done(job, pushed), flush=True)


def show(settings: Settings) -> None:
    """Print what would be pushed where, with sizes and card, after the same look at the Hub as before training."""
    root = Path(settings.output_dir)
    policy = Target("publish.repo_id", "", "model", "")
    for target in targets(settings.publish) or [policy]:
        folder = _folder(root, target)
        files = files_below(folder, root)
        print(f"{folder} of run {_run_of(root)}: {len(files)} files, {_mb(total_bytes(files))}")
        for path, local in files.items():
            print(f"{os.path.getsize(local):>14,}  {path}")
        if "README.md" in files:
            print(f"\n{Path(files['README.md']).read_text(encoding='utf-8')}")
        if target.repo_id:
            _look(settings.publish, target, total_bytes(files), "", tries.LOOKING)
    print("dry run: nothing was pushed")


def main(run: Run, patience: Patience = tries.PUBLISHING, checks: Sequence[str] = CHECKS) -> None:
    """Publish the newest run, or show what would be published.

    Where the settings describe the newest run, its cards are written again first, with the names of the repositories.

    Raises:
        UserError: it failed; the line ends with the command that tries again.
    """
    if run.settings.publish.dry_run:
        show(run.settings)
        return
    if not targets(run.settings.publish):
        raise UserError("publish.repo_id: null; wanted <user or organisation>/<name>")
    if run.is_done and run.directory.resolve() == latest(run.settings.output_dir).resolve():
        product.write(run)
    push(run, patience, checks)


def push(run: Run, patience: Patience = tries.PUBLISHING, checks: Sequence[str] = CHECKS) -> None:
    """Push the newest run as it lies on disk.

    Raises:
        UserError: it failed; the line ends with the command that tries again.
    """
    try:
        push_run(run.settings, patience, checks)
    except UserError as error:
        again = shlex.join(["make", "publish", *run.overrides])
        raise UserError(f"publish: {error}; all is still on disk, this tries again: {again}") from error


def write_cards(run: Run) -> list[Path]:
    """Write the cards of a finished run again, and return their paths.

    Raises:
        UserError: the run is not finished.
    """
    unfinished = [stage.name for stage in run.stages if not is_done(stage)]
    if unfinished:
        raise UserError(f"card: {', '.join(unfinished)} not built; run `make pipeline` with the same overrides first")
    return [folder / "README.md" for folder in product.write(run)]


def total_bytes(files: Mapping[str, str]) -> int:
    """Bytes of all these files."""
    return sum(os.path.getsize(path) for path in files.values())


def _look(publish: Publish, target: Target, size_bytes: int, about: str, patience: Patience) -> None:
    job = _job(publish, target, {}, "", "")
    exists = tries.run(dataclasses.replace(job, step="look"), patience)["exists"]
    free_bytes = _require_room(size_bytes)
    state = "exists" if exists else "new"
    print(
        f"publish: {target.repo_id} ({_visibility(publish)}, {state}), {about}{_mb(size_bytes)} to push, "
        f"{free_bytes / 1e9:.0f} GB free on disk",
        flush=True,
    )


def _job(publish: Publish, target: Target, files: Mapping[str, str], run: str, cache_dir: str) -> Job:
    return Job(
        step="push",
        setting=target.setting,
        repo_id=target.repo_id,
        private=publish.private,
        revision=publish.revision,
        files=files,
        run=run,
        model_class=target.model_class,
        cache_dir=cache_dir,
        commit=None,
    )


def _require_room(size_bytes: int) -> int:
    """Bytes free where the copy that is loaded back will lie."""
    place = tempfile.gettempdir()
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise UserError(
            f"{place}: {_mb(free_bytes)} free, {_mb(size_bytes + _SPARE_BYTES)} wanted for the copy that is loaded "
            "back from the Hub; make room, or set TMPDIR to a larger disk"
        )
    return free_bytes


def _folder(root: Path, target: Target) -> Path:
    folder = root / "latest" / target.folder
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no finished model; run `make pipeline` first")
    return folder


def _run_of(root: Path) -> str:
    return (root / "latest").resolve().name


def _names(files: Mapping[str, str], repo_id: str) -> bool:
    """Whether the card, where there is one, has the repository's name."""
    card = files.get("README.md")
    return card is None or repo_id in Path(card).read_text(encoding="utf-8")


def _done(job: Job, pushed: Mapping[str, Any]) -> str:
    news = "" if pushed["is_new"] else ", which held these files already"
    tag = f"tag run-{job.run}"
    if pushed["tagged"] != pushed["commit"]:
        tag += f" stays at {pushed['tagged'][:12]}"
    return (
        f"published: {job.repo_id} at commit {pushed['commit'][:12]}{news}; {tag}; {len(job.files)} files compared by "
        "hash and loaded back"
    )


def _visibility(publish: Publish) -> str:
    return "private" if publish.private else "public"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":  # `python -m gpt2_rlhf.publish` is `python -m gpt2_rlhf publish`
    sys.argv[1:1] = ["publish"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
