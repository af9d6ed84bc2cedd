"""The steps of publishing to one repository. tries.py runs each in a child process, and again after a failure.

Each step can be repeated: what is on the Hub already stays as it is.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.sha import git_hash

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
    keep: Sequence[str]  # patterns of files there that stay
    folder: str  # below outputs/latest
    model_class: str  # of transformers, to load the model back with

    @property
    def visibility(self) -> str:
        """The word for `private`."""
        return "private" if self.private else "public"


_TITLE = "Model, card and figures of run "  # of our commits
_TEXT = "\n\nHuman: Is this the same text, 123 naïve é?\n\nAssistant: Yes.<|endoftext|>"  # to compare encodings


@dataclass(frozen=True)
class Found:
    """What a branch holds. card_commit: who changed the card last, id and title; None if a push of ours did."""

    commit: str
    files: Sequence[str]
    card_commit: str | None
    card_sha1: str | None  # as Git hashes it

    def foreign(self, paths: Sequence[str], keep: Sequence[str]) -> list[str]:
        """Return the files that are not among these paths and that no pattern keeps."""
        kept = (".gitattributes", *keep)  # the Hub's own
        others = sorted(set(self.files).difference(paths))
        return [path for path in others if path not in kept and not any(fnmatchcase(path, one) for one in kept)]

    def edited_card(self, card: Path) -> str | None:
        """Return the commit that changed the card, if it was not a push and left it other than on this disk."""
        return None if self.card_sha1 == git_hash(card.read_bytes()) else self.card_commit


@dataclass(frozen=True)
class Pushed:
    """A commit that holds these files. tagged: the commit that the tag of the run points to."""

    target: Target
    folder: Path
    paths: Sequence[str]  # relative to the folder, and in the repository
    commit: str
    is_new: bool
    tagged: str


def look(api: HfApi, target: Target) -> Found | None:
    """Return what the branch holds, after checking everything that can be known without writing.

    A branch that does not exist will start from main. None: there is no such repository.

    Raises:
        UserError: the account may not write to that name, or the repository is not as private as the settings say.
    """
    problem = access.fault(api.whoami(), target.repo_id, target.setting)
    if problem is not None:
        raise UserError(problem)
    try:
        info = api.model_info(target.repo_id)
    except RepositoryNotFoundError:
        return None
    visibility = "private" if info.private else "public"
    if visibility != target.visibility:
        raise UserError(
            f"publish.private: {target.repo_id} is {visibility}, expected {target.visibility}; nothing was pushed. Set "
            f"publish.private={str(not target.private).lower()}, or change the repository in its settings on the Hub"
        )
    if target.branch != "main":
        with suppress(RevisionNotFoundError):
            info = api.model_info(target.repo_id, revision=target.branch)
    assert info.sha is not None
    files = [one.rfilename for one in info.siblings or []]
    if "README.md" not in files:
        return Found(info.sha, files, None, None)
    (card,) = api.get_paths_info(target.repo_id, "README.md", revision=info.sha, expand=True)
    assert isinstance(card, RepoFile)
    assert card.last_commit is not None
    title = card.last_commit.title
    by_others = None if title.startswith(_TITLE) else f"{card.last_commit.oid[:12]} ({title})"
    return Found(info.sha, files, by_others, card.blob_id)


def check(api: HfApi, target: Target, license_id: str) -> Found | None:
    """Return what `look` returns, after the Hub has checked the license that the card will name.

    Raises:
        UserError: as `look`, or the Hub does not know the license, so that it would refuse the card.
    """
    found = look(api, target)
    try:
        ModelCard(f"---\nlicense: {json.dumps(license_id)}\n---\n").validate()
    except ValueError as error:
        raise UserError(
            f"card.license: {license_id!r}, which the Hub refuses; expected one of "
            "https://huggingface.co/docs/hub/repositories-licenses"
        ) from error
    return found


def push(api: HfApi, target: Target, folder: Path, paths: Sequence[str], run: str) -> Pushed:
    """Make the branch hold exactly the files by one commit, or by none if it does already; tag the run.

    Other files there are deleted: an old tokenizer file or adapter would change what loads. Hashes are compared.

    Raises:
        UserError: as `look`, or the repository that was just created is not as private as the settings say.
        Damaged: the Hub lists other hashes than those of the files.
    """
    found = look(api, target)
    if found is None:
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)  # private from its first moment
        found = look(api, target)  # the Hub can ignore the wish for a private one
    if target.branch != "main":
        api.create_branch(target.repo_id, branch=target.branch, exist_ok=True)
        found = look(api, target)
    if found is None:
        raise UserError(f"publish: {target.repo_id} was created, but the Hub does not show it yet; push it again")
    # Not upload_folder: where hf_xet is installed it cuts a folder into several commits (huggingface_hub 2.4.0,
    # _upload_pipeline.py). parent_commit: a commit whose answer was lost, and that lands late, cannot be made twice.
    commit = api.create_commit(
        target.repo_id,
        operations=[
            *(CommitOperationAdd(path, folder / path) for path in paths),
            *(CommitOperationDelete(path) for path in found.foreign(paths, target.keep)),
        ],
        commit_message=f"{_TITLE}{run}",
        revision=target.branch,
        parent_commit=found.commit,
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
    return Pushed(target, folder, paths, commit, is_new=commit != found.commit, tagged=tags.get(tag, commit))


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
    """Load model and tokenizer by the name of the repository, and compare them with those loaded from this disk.

    The cache is the one that `fetch` filled. A file that `publish.keep` left in the repository may change what loads.

    Raises:
        UserError: something differs, or weights are missing, which transformers would fill with random numbers.
    """
    repo_id = pushed.target.repo_id
    place: dict[str, Any] = {"revision": pushed.commit, "cache_dir": cache_dir, "token": api.token}
    there, here = _loaded(pushed.target, repo_id, place), _loaded(pushed.target, str(pushed.folder), {})
    different = [name for name in here if here[name] != there[name]]
    if different:
        raise UserError(
            f"{repo_id} loads with other {', '.join(different)} than {pushed.folder}; a file that publish.keep left "
            "there changes what loads, so keep fewer"
        )


def _loaded(target: Target, place: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a loaded model and tokenizer give the same answers; of the weights, a digest."""
    import transformers  # with torch it takes seven seconds, and the other steps do not need it
    from torch import uint8

    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **arguments)
    model_class = getattr(transformers, target.model_class)
    model, found = model_class.from_pretrained(place, output_loading_info=True, **arguments)
    if found["missing_keys"]:
        raise UserError(f"{place}: its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        weights.update(tensor.flatten().view(uint8).numpy())
    return {
        "padding and EOS tokens": (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.pad_token_id),
        "vocabulary": tokenizer.get_vocab(),
        "encoding": tokenizer(_TEXT)["input_ids"],
        "chat template": tokenizer.chat_template,
        "sampling": model.generation_config.to_dict() if model.can_generate() else None,
        "weights": weights.hexdigest(),
    }
