"""One try of one step of publishing, in a process of its own: look, push, fetch or load. hub_tries.py starts it.

    python -m gpt2_rlhf.hub.worker <a Job as JSON> <seconds of silence that are a failure>

A process of its own because huggingface_hub reads its settings when imported and waits for ever on a silent server:
the caller sets the environment and can kill it. Each step can be repeated: what is on the Hub already is left alone.
stdin is a pipe from the caller, whose end means that the caller is gone. The last line of stdout is JSON: what the
step found, or the cause of its failure and whether another try can help.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    RepoFile,
    get_token,
    hf_hub_download,
    is_offline_mode,
    set_client_factory,
)
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import logging, validate_repo_id
from huggingface_hub.utils._http import default_client_factory

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.hub import access, faults
from gpt2_rlhf.hub.faults import Damaged
from gpt2_rlhf.hub.tries import EXIT_FAILED, Job


def main(text: str, silence_s: float) -> int:
    """Do one step; print what came of it as JSON and return the exit code."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    job = Job(**json.loads(text))
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the one line
        code, result = _attempt(job, silence_s)
    print(json.dumps(result))
    return code


def _attempt(job: Job, silence_s: float) -> tuple[int, dict[str, Any]]:
    logging.set_verbosity_error()  # its warnings on retries name the signed addresses of uploads
    set_client_factory(lambda: _client(silence_s))
    token = get_token()
    try:
        _check_name(job)
        return 0, _step(job, _checked(token))
    except Exception as error:  # of all kinds: hub_errors raises again what is a defect
        failed = dataclasses.asdict(faults.failure(error))
        if token:  # no message of huggingface_hub 2.4 is known to hold it
            failed["cause"] = failed["cause"].replace(token, "<token>")
        return EXIT_FAILED, failed


def _client(silence_s: float) -> httpx2.Client:
    client = default_client_factory()  # which waits for ever
    client.timeout = silence_s
    return client


def _check_name(job: Job) -> None:
    if job.repo_id.count("/") != 1:
        raise UserError(f"{job.setting}: {job.repo_id!r}; wanted <user or organisation>/<name>")
    try:
        validate_repo_id(job.repo_id)
    except ValueError as error:
        raise UserError(f"{job.setting}: {' '.join(str(error).split())}") from error


def _checked(token: str | None) -> str:
    if token is None:
        raise UserError("there is no Hub token on this machine; run `hf auth login` first, or set HF_TOKEN")
    if not token.isascii() or not token.isprintable() or " " in token:  # httpx2 would print it in its refusal
        raise UserError("your Hub token holds characters that no token has; run `hf auth login` again")
    if is_offline_mode():
        raise UserError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, so nothing can be published; unset it")
    return token


def _step(job: Job, token: str) -> dict[str, Any]:
    api = HfApi(token=token)
    if job.step == "look":
        return {"exists": look(job, api)}
    if job.step == "push":
        return push(job, api)
    if job.step == "fetch":
        return fetch(job, token)
    return load(job, token)


def look(job: Job, api: HfApi) -> bool:
    """Whether the repository exists, after all that can be known without writing.

    Raises:
        UserError: the account may not write to that name, or what is there is not as private as asked.
    """
    problem = access.fault(api.whoami(), job.repo_id, job.setting)
    if problem is not None:
        raise UserError(problem)
    try:
        _check_visibility(job, api)
    except RepositoryNotFoundError:
        return False
    return True


def push(job: Job, api: HfApi) -> dict[str, Any]:
    """Make the branch hold the files by one commit, or none if it does; then compare their hashes and tag the commit.

    Raises:
        UserError: as `look`, or the repository that was just created is not as private as asked.
    """
    if not look(job, api):
        api.create_repo(job.repo_id, private=job.private, exist_ok=True)  # private from its first moment
        _check_visibility(job, api)  # the Hub is free to ignore what it was asked
    if job.revision is not None:
        api.create_branch(job.repo_id, branch=job.revision, exist_ok=True)
    branch = job.revision or "main"
    head = api.model_info(job.repo_id, revision=branch).sha
    # Not upload_folder: where hf_xet is installed it cuts a folder into several commits (huggingface_hub 2.4.0,
    # _upload_pipeline.py). parent_commit: a commit whose answer was lost, and that lands late, cannot be made twice.
    made = api.create_commit(
        job.repo_id,
        operations=[CommitOperationAdd(path, local) for path, local in job.files.items()],
        commit_message=f"Model, card and figures of run {job.run}",
        revision=branch,
        parent_commit=head,
    )
    _compare(job, api, made.oid)
    return {"commit": made.oid, "is_new": made.oid != head, "tagged": _tag(job, api, made.oid)}


def _check_visibility(job: Job, api: HfApi) -> None:
    if bool(api.model_info(job.repo_id).private) != job.private:
        found, asked = ("public", "private") if job.private else ("private", "public")
        raise UserError(
            f"publish.private: {job.repo_id} is {found} and {asked} was asked for; nothing was pushed. Set "
            f"publish.private={str(not job.private).lower()}, or make it {asked} in its settings on the Hub"
        )


def _compare(job: Job, api: HfApi, commit: str) -> None:
    """Refuse a commit whose files are not the local ones, by the hashes that the Hub lists."""
    tree = api.list_repo_tree(job.repo_id, recursive=True, revision=commit)
    remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for path, local in job.files.items():
        if path not in remote:
            raise Damaged(f"commit {commit[:12]} of {job.repo_id} lacks {path}")
        lfs = remote[path].lfs
        if (_sha256(local) != lfs.sha256) if lfs else (_git_blob_sha1(local) != remote[path].blob_id):
            raise Damaged(f"{path} in commit {commit[:12]} of {job.repo_id} is not the file on this disk")


def _tag(job: Job, api: HfApi, commit: str) -> str:
    """The commit that the run's tag points to: this one, or that of an earlier push, where the tag stays."""
    name = f"run-{job.run}"
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(job.repo_id).tags}
    if name not in tags:
        api.create_tag(job.repo_id, tag=name, revision=commit, exist_ok=True)
    return tags.get(name, commit)


def fetch(job: Job, token: str) -> dict[str, Any]:
    """Download what was pushed into an empty cache and compare it byte by byte, by sha256.

    The plain HTTP download checks the size only: a model with a flipped byte loads without an error.
    """
    shutil.rmtree(job.cache_dir, ignore_errors=True)  # an earlier try may have left a damaged file
    for path, local in job.files.items():
        got = hf_hub_download(job.repo_id, path, revision=job.commit, cache_dir=job.cache_dir, token=token)
        if _sha256(got) != _sha256(local):
            raise Damaged(f"{path} came back from {job.repo_id} with other content than on this disk")
    return {}


def load(job: Job, token: str) -> dict[str, Any]:
    """Load model and tokenizer by the repository's name, from the cache that `fetch` filled.

    Raises:
        UserError: weights are missing, which transformers would fill with random numbers.
    """
    import transformers  # with torch, seven seconds

    place: dict[str, Any] = {"revision": job.commit, "cache_dir": job.cache_dir, "token": token}
    transformers.AutoTokenizer.from_pretrained(job.repo_id, **place)
    model_class = getattr(transformers, job.model_class)
    _, found = model_class.from_pretrained(job.repo_id, output_loading_info=True, **place)
    if found["missing_keys"]:
        raise UserError(f"{job.repo_id}: its weights lack {', '.join(sorted(found['missing_keys'])[:3])}")
    return {}


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob_sha1(path: str) -> str:
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _end_with_caller() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter ends
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
