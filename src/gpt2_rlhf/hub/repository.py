"""The steps of publishing to one repository. tries.py runs each in a child process, and again after a failure.

Each step can be repeated: what is on the Hub already stays as it is.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub import access
from gpt2_rlhf.hub.faults import Damaged
from gpt2_rlhf.store.files import sha256


@dataclass(frozen=True)
class Target:
    """A repository to push to, and the folder of a run that goes there."""

    setting: str  # that names the repository, for messages
    repo_id: str
    private: bool
    branch: str
    folder: str  # below outputs/latest
    model_class: str  # of transformers, to load the model back with

    @property
    def visibility(self) -> str:
        """The word for `private`."""
        return "private" if self.private else "public"


@dataclass(frozen=True)
class Pushed:
    """A commit that holds these files. tagged: the commit that the tag of the run points to."""

    target: Target
    folder: Path
    paths: Sequence[str]  # relative to the folder, and in the repository
    commit: str
    is_new: bool
    tagged: str


def check_name(target: Target) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        UserError: names the setting and the rule.
    """
    if target.repo_id.count("/") != 1:
        raise UserError(f"{target.setting}: {target.repo_id!r}; expected <user or organisation>/<name>")
    try:
        validate_repo_id(target.repo_id)
    except ValueError as error:
        raise UserError(f"{target.setting}: {' '.join(str(error).split())}") from error


def look(api: HfApi, target: Target) -> bool:
    """Return whether the repository exists, after checking everything that can be known without writing.

    Raises:
        UserError: the account may not write to that name, or the repository is not as private as the settings say.
    """
    problem = access.fault(api.whoami(), target.repo_id, target.setting)
    if problem is not None:
        raise UserError(problem)
    try:
        _check_visibility(api, target)
    except RepositoryNotFoundError:
        return False
    return True


def push(api: HfApi, target: Target, folder: Path, paths: Sequence[str], run: str) -> Pushed:
    """Make the branch hold the files by one commit, or by none if it does already; compare their hashes; tag the run.

    Raises:
        UserError: as `look`, or the repository that was just created is not as private as the settings say.
        Damaged: the Hub lists other hashes than those of the files.
    """
    if not look(api, target):
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)  # private from its first moment
        _check_visibility(api, target)  # the Hub can ignore the wish
    if target.branch != "main":
        api.create_branch(target.repo_id, branch=target.branch, exist_ok=True)
    head = api.model_info(target.repo_id, revision=target.branch).sha
    # Not upload_folder: where hf_xet is installed it cuts a folder into several commits (huggingface_hub 2.4.0,
    # _upload_pipeline.py). parent_commit: a commit whose answer was lost, and that lands late, cannot be made twice.
    commit = api.create_commit(
        target.repo_id,
        operations=[CommitOperationAdd(path, folder / path) for path in paths],
        commit_message=f"Model, card and figures of run {run}",
        revision=target.branch,
        parent_commit=head,
    ).oid
    listed = api.verify_repo_checksums(target.repo_id, revision=commit, local_dir=folder)
    # extra_paths: files here that the commit lacks; hidden files are never pushed
    damaged = {one["path"] for one in listed.mismatches}.union(listed.extra_paths).intersection(paths)
    if damaged:
        raise Damaged(f"{min(damaged)} in commit {commit[:12]} of {target.repo_id} is not the file on this disk")
    tag = f"run-{run}"
    tags = {one.name: one.target_commit for one in api.list_repo_refs(target.repo_id).tags}
    if tag not in tags:  # the tag of an earlier push stays where it is
        api.create_tag(target.repo_id, tag=tag, revision=commit, exist_ok=True)
    return Pushed(target, folder, paths, commit, is_new=commit != head, tagged=tags.get(tag, commit))


def fetch(api: HfApi, pushed: Pushed, cache_dir: str) -> None:
    """Download the commit into an empty cache and compare each file with the one on this disk, by sha256.

    The plain HTTP download checks the size only: a model with a flipped byte loads without an error.

    Raises:
        Damaged: a file differs.
    """
    shutil.rmtree(cache_dir, ignore_errors=True)  # an earlier try can have left a damaged file
    repo_id = pushed.target.repo_id
    for path in pushed.paths:
        got = api.hf_hub_download(repo_id, path, revision=pushed.commit, cache_dir=cache_dir)
        if sha256(Path(got)) != sha256(pushed.folder / path):
            raise Damaged(f"{path} came back from {repo_id} with other content than on this disk")


def load(api: HfApi, pushed: Pushed, cache_dir: str) -> None:
    """Load model and tokenizer by the name of the repository, from the cache that `fetch` filled.

    Raises:
        UserError: weights are missing, which transformers would fill with random numbers.
    """
    import transformers  # with torch it takes seven seconds, and the other steps do not need it

    repo_id = pushed.target.repo_id
    place: dict[str, Any] = {"revision": pushed.commit, "cache_dir": cache_dir, "token": api.token}
    transformers.AutoTokenizer.from_pretrained(repo_id, **place)
    model_class = getattr(transformers, pushed.target.model_class)
    _, found = model_class.from_pretrained(repo_id, output_loading_info=True, **place)
    if found["missing_keys"]:
        raise UserError(f"{repo_id}: its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")


def _check_visibility(api: HfApi, target: Target) -> None:
    found = "private" if api.model_info(target.repo_id).private else "public"
    if found != target.visibility:
        raise UserError(
            f"publish.private: {target.repo_id} is {found}, expected {target.visibility}; nothing was pushed. Set "
            f"publish.private={str(not target.private).lower()}, or change the repository in its settings on the Hub"
        )
