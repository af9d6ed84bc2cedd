"""Push the newest run to the Hub in one commit, then check that what arrived is what was pushed, and that it loads.

    python -m gpt2_rlhf.publish publish.repo_id=user/name [key=value ...]

Three steps per repository, each retried after transient failures (hub/tries.py): push commits the folder and compares
the hashes that the Hub lists; fetch downloads it into an empty cache and compares again; load opens it by name.
Pushing the same files again makes no commit. Whatever fails, everything stays on disk.
"""

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from gpt2_rlhf.config import as_command
from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.printable import printable
from gpt2_rlhf.config.settings import Publish, Settings
from gpt2_rlhf.evidence import product
from gpt2_rlhf.hub import repository, tries
from gpt2_rlhf.hub.folder import files_below, megabytes, require_room
from gpt2_rlhf.hub.repository import Found, Target
from gpt2_rlhf.hub.tries import Patience
from gpt2_rlhf.models import shape
from gpt2_rlhf.store import run as runs
from gpt2_rlhf.store.run import Run, latest
from gpt2_rlhf.store.stage import fault

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
        Target(setting, repo_id, publish.private, publish.revision or "main", publish.keep, folder, model_class)
        for setting, repo_id, folder, model_class in models
        if repo_id is not None
    ]
    for target in found:
        if target.repo_id.count("/") != 1:
            raise UserError(f"{target.setting}: {target.repo_id!r}; expected <user or organisation>/<name>")
        try:
            validate_repo_id(target.repo_id)
        except ValueError as error:
            raise UserError(f"{target.setting}: {' '.join(str(error).split())}") from error
    if len({target.repo_id for target in found}) < len(found):
        raise UserError(f"publish.reward_repo_id: {found[0].repo_id} takes the policy; expected another name")
    return found


def check(settings: Settings, patience: Patience = tries.LOOKING) -> None:
    """Refuse, before anything is trained, what would fail after it; print a line for each repository. Writes nothing.

    Raises:
        UserError: a name that no repository can have or that belongs to somebody else, no token or one that may not
            write, a repository of the other visibility, too little room on disk, a license that the Hub does not know,
            or a Hub that cannot be reached.
    """
    size_bytes = 4 * shape.of(settings.model).weights  # in float32
    for target in targets(settings.publish):
        _check(target, settings, size_bytes, "about ", patience)


def main(run: Run, patience: Patience = tries.PUBLISHING, checks: Checks = CHECKS) -> None:
    """Publish the newest run, or show what would be published.

    Its cards are written again first, so that they name the repositories and the branch of this command.

    Raises:
        UserError: it failed; the line ends with the command that tries again.
    """
    settings = run.settings
    if not targets(settings.publish) and not settings.publish.dry_run:
        raise UserError("publish.repo_id: null; expected <user or organisation>/<name>")
    newest = runs.read(latest(settings.output_dir), settings)
    is_given = any(one.startswith("card.") for one in run.overrides)
    card = settings.card if is_given else newest.settings.card
    told = dataclasses.replace(newest.settings, card=card, output_dir=settings.output_dir)
    newest = dataclasses.replace(newest, settings=told)
    if settings.publish.dry_run:
        show(newest)
        return
    product.write(newest)
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
    size_bytes = sum((folder / path).stat().st_size for path in paths)
    require_room(size_bytes)
    found = tries.run(repository.look, target, patience=patience, size_bytes=size_bytes)
    for line in _overwritten(target, found, folder, paths):
        print(f"publish: {line}", flush=True)
    print(
        f"publish: pushing {len(paths)} files, {megabytes(size_bytes)}, to {target.repo_id} ({target.visibility})",
        flush=True,
    )
    tag = newest.resolve().name
    pushed = tries.run(repository.push, target, folder, paths, tag, patience=patience, size_bytes=size_bytes)
    at = f"{target.repo_id} at commit {pushed.commit[:12]}"
    with tempfile.TemporaryDirectory(prefix="gpt2-rlhf-publish-") as cache_dir:
        try:
            for check_of_push in checks:
                tries.run(check_of_push, pushed, cache_dir, patience=patience, size_bytes=size_bytes)
        except UserError as error:
            raise UserError(f"{at} was pushed, but the check of it failed: {error}") from error
    news = "" if pushed.is_new else ", which held these files already"
    stays = "" if pushed.tagged == pushed.commit else f" stays at {pushed.tagged[:12]}"
    print(
        f"published: {at}{news}; tag run-{tag}{stays}; {len(paths)} files compared by hash and loaded back", flush=True
    )


def show(run: Run) -> None:
    """Print what would be pushed where, with sizes and card, and check each repository as before training."""
    root = Path(run.settings.output_dir)
    cards = product.cards(run)
    for name, target in [(one.folder, one) for one in targets(run.settings.publish)] or [("model", None)]:
        folder = latest(str(root)) / name
        paths = files_below(folder, root)
        written = product.written(folder).get("files", paths)  # a push sets other files aside
        sizes = {path: (folder / path).stat().st_size for path in paths if path in written}
        size_bytes = sum(sizes.values())
        print(f"{folder} of run {run.name}: {len(sizes)} files, {megabytes(size_bytes)}")
        for path, size in sizes.items():
            print(f"{size:>14,}  {path}")
        print(f"\n{cards[name]}")
        if target is not None:
            found = _check(target, run.settings, size_bytes, "", tries.LOOKING)
            for line in _overwritten(target, found, folder, list(sizes)):
                print(line)
    print("dry run: nothing was pushed")


def write_cards(run: Run) -> list[Path]:
    """Write the cards of a finished run again, and return their paths.

    Raises:
        UserError: the run is not finished.
    """
    unfinished = [stage.name for stage in run.stages if fault(stage) is not None]
    if unfinished:
        raise UserError(f"card: {', '.join(unfinished)} not built; run `make pipeline` with the same overrides first")
    return [folder / "README.md" for folder in product.write(run)]


def _check(target: Target, settings: Settings, size_bytes: int, about: str, patience: Patience) -> Found | None:
    found = tries.run(repository.check, target, settings.card.license, patience=patience)
    free_bytes = require_room(size_bytes)
    state = "new" if found is None else f"exists with {len(found.files)} files, which a push replaces"
    print(
        f"publish: {target.repo_id} ({target.visibility}, {state}), {about}{megabytes(size_bytes)} to push, "
        f"{free_bytes / 1e9:.0f} GB free on disk",
        flush=True,
    )
    return found


def _overwritten(target: Target, found: Found | None, folder: Path, paths: Sequence[str]) -> Iterator[str]:
    """Yield a line for what others put into the repository and a push replaces; its history keeps all of it."""
    if found is None:
        return
    foreign = found.foreign(paths, target.keep)
    if foreign:
        keep = shlex.quote(f"publish.keep={json.dumps(foreign[:2], ensure_ascii=False)}")
        yield printable(
            f"{target.repo_id}: deletes what is not of this run: {', '.join(foreign)}; commit {found.commit[:12]} "
            f"still has it, and {keep} would keep {'the first two' if foreign[2:] else 'it'}"
        )
    edited = found.edited_card(folder / "README.md")
    if edited is not None:
        yield printable(f"{target.repo_id}: replaces the README.md of commit {edited} by the card of this run")


if __name__ == "__main__":
    as_command.run("publish")
