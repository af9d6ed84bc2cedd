"""Push the newest run to the Hub in one commit, then check that what arrived is what was pushed, and that it loads.

    python -m gpt2_rlhf.publish publish.repo_id=user/name [key=value ...]

Three steps per repository, each retried after transient failures (hub/tries.py): push commits the folder and compares
the hashes that the Hub lists; fetch downloads it into an empty cache and compares again; load opens it by name.
Pushing the same files again makes no commit. Whatever fails, everything stays on disk.
"""

import runpy
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Publish, Settings
from gpt2_rlhf.evidence import product
from gpt2_rlhf.hub import repository, tries
from gpt2_rlhf.hub.folder import files_below, megabytes, require_room, total_bytes, weights_bytes
from gpt2_rlhf.hub.repository import Pushed, Target
from gpt2_rlhf.hub.tries import Patience
from gpt2_rlhf.models import model_files
from gpt2_rlhf.store.run import Run, latest
from gpt2_rlhf.store.stage import is_done

Checks = Sequence[Callable[..., None]]
CHECKS: Checks = (repository.fetch, repository.load)


def targets(publish: Publish) -> list[Target]:
    """Return the repositories that these settings name; none means that nothing is to be pushed.

    Raises:
        UserError: a name that no repository can have, or one name for both.
    """
    models = (
        ("publish.repo_id", publish.repo_id, "model", "AutoModelForCausalLM"),
        ("publish.reward_repo_id", publish.reward_repo_id, "reward_model", "AutoModelForSequenceClassification"),
    )
    found = [
        Target(setting, repo_id, publish.private, publish.revision or "main", folder, model_class)
        for setting, repo_id, folder, model_class in models
        if repo_id is not None
    ]
    for target in found:
        repository.check_name(target)
    if len({target.repo_id for target in found}) < len(found):
        raise UserError(f"publish.reward_repo_id: {found[0].repo_id} takes the policy; expected another name")
    return found


def check(settings: Settings, patience: Patience = tries.LOOKING) -> None:
    """Refuse, before anything is trained, what would fail after it; print a line for each repository. Writes nothing.

    Raises:
        UserError: a name that no repository can have or that belongs to somebody else, no token or one that may not
            write, a repository of the other visibility, too little room on disk, or a Hub that cannot be reached.
    """
    found = targets(settings.publish)
    size_bytes = weights_bytes(model_files.check(settings.model))
    for target in found:
        _look(target, size_bytes, "about ", patience)


def main(run: Run, patience: Patience = tries.PUBLISHING, checks: Checks = CHECKS) -> None:
    """Publish the newest run, or show what would be published.

    If the settings describe the newest run, its cards are written again first, with the names of the repositories.

    Raises:
        UserError: it failed; the line ends with the command that tries again.
    """
    found = targets(run.settings.publish)
    if run.settings.publish.dry_run:
        show(run.settings)
        return
    if not found:
        raise UserError("publish.repo_id: null; expected <user or organisation>/<name>")
    if run.is_done and run.directory.resolve() == latest(run.settings.output_dir).resolve():
        product.write(run)
    push(run, patience, checks)


def push(run: Run, patience: Patience = tries.PUBLISHING, checks: Checks = CHECKS) -> None:
    """Push the newest run as it is on disk to each repository, check it there, and print a line for each.

    Raises:
        UserError: it failed; the line ends with the command that tries again. What is on disk is as before.
    """
    try:
        for target in targets(run.settings.publish):
            _push(target, Path(run.settings.output_dir), patience, checks)
    except UserError as error:
        again = shlex.join(["make", "publish", *run.overrides])
        raise UserError(f"publish: {error}; all is still on disk, this tries again: {again}") from error


def _push(target: Target, root: Path, patience: Patience, checks: Checks) -> None:
    newest = latest(str(root))
    folder = newest / target.folder
    paths = files_below(folder, root)
    product.check(folder)
    size_bytes = total_bytes(folder, paths)
    require_room(size_bytes)
    print(
        f"publish: pushing {len(paths)} files, {megabytes(size_bytes)}, to {target.repo_id} ({target.visibility})",
        flush=True,
    )
    if "README.md" in paths and target.repo_id not in (folder / "README.md").read_text(encoding="utf-8"):
        print(
            f"publish: the card does not name {target.repo_id}, so its snippet loads something else; "
            f"`make pipeline {target.setting}={target.repo_id}` with the overrides of the run writes the card again, "
            "and trains nothing",
            flush=True,
        )
    tag = newest.resolve().name
    pushed = tries.run(repository.push, target, folder, paths, tag, patience=patience, size_bytes=size_bytes)
    with tempfile.TemporaryDirectory(prefix="gpt2-rlhf-publish-") as cache_dir:
        try:
            for check_of_push in checks:
                tries.run(check_of_push, pushed, cache_dir, patience=patience, size_bytes=size_bytes)
        except UserError as error:
            raise UserError(f"{_at(pushed)} was pushed, but the check of it failed: {error}") from error
    print(_done(pushed, tag), flush=True)


def show(settings: Settings) -> None:
    """Print what would be pushed where, with sizes and card, and check each repository as before training."""
    found = targets(settings.publish)
    newest = latest(settings.output_dir)
    for name, target in [(target.folder, target) for target in found] or [("model", None)]:
        folder = newest / name
        paths = files_below(folder, Path(settings.output_dir))
        size_bytes = total_bytes(folder, paths)
        print(f"{folder} of run {newest.resolve().name}: {len(paths)} files, {megabytes(size_bytes)}")
        for path in paths:
            print(f"{(folder / path).stat().st_size:>14,}  {path}")
        if "README.md" in paths:
            print(f"\n{(folder / 'README.md').read_text(encoding='utf-8')}")
        if target is not None:
            _look(target, size_bytes, "", tries.LOOKING)
    print("dry run: nothing was pushed")


def write_cards(run: Run) -> list[Path]:
    """Write the cards of a finished run again, and return their paths.

    Raises:
        UserError: the run is not finished.
    """
    unfinished = [stage.name for stage in run.stages if not is_done(stage)]
    if unfinished:
        raise UserError(f"card: {', '.join(unfinished)} not built; run `make pipeline` with the same overrides first")
    return [folder / "README.md" for folder in product.write(run)]


def _look(target: Target, size_bytes: int, about: str, patience: Patience) -> None:
    state = "exists" if tries.run(repository.look, target, patience=patience) else "new"
    free_bytes = require_room(size_bytes)
    print(
        f"publish: {target.repo_id} ({target.visibility}, {state}), {about}{megabytes(size_bytes)} to push, "
        f"{free_bytes / 1e9:.0f} GB free on disk",
        flush=True,
    )


def _done(pushed: Pushed, run_name: str) -> str:
    news = "" if pushed.is_new else ", which held these files already"
    stays = "" if pushed.tagged == pushed.commit else f" stays at {pushed.tagged[:12]}"
    return (
        f"published: {_at(pushed)}{news}; tag run-{run_name}{stays}; {len(pushed.paths)} files compared by hash and "
        "loaded back"
    )


def _at(pushed: Pushed) -> str:
    return f"{pushed.target.repo_id} at commit {pushed.commit[:12]}"


if __name__ == "__main__":  # `python -m gpt2_rlhf.publish` is `python -m gpt2_rlhf publish`
    sys.argv[1:1] = ["publish"]
    runpy.run_module("gpt2_rlhf", run_name="__main__")
