"""Fetch a Hub data set's files at its pinned commit, from the cache if all of them are there.

An interrupted download leaves some of the files. huggingface_hub keeps the list of the commit's files beside them, so
an incomplete download is recognised offline too, and no model is trained on half of the data.
"""

from glob import escape
from pathlib import Path

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.hub_errors import HUB_TIMEOUT_S, hub_errors, is_commit, require_undamaged
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.rows.layout import File, layout


def locate(data: Data, download: bool = False) -> tuple[Path | None, list[File], list[str]]:
    """Return the folder of a Hub data set, the files to read and the names of those not read.

    Makes no request if all files are there, since a commit does not change. download: fetch the files that are missing,
    and compare all with their hashes; otherwise the folder is None if a file is missing.

    Raises:
        UserError: the Hub has no such data set, revision or subset, gives no access, or cannot be reached.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    title, where = data.name.rpartition("/")[2], f"{data.name} on the Hub"
    with hub_errors("data", data.name, data.revision):
        try:
            if not is_commit(data.revision):
                raise CachedRepoTreeNotFoundError  # a branch moves, so the cache may hold an older state of it
            tree = get_cached_repo_tree(data.name, repo_type="dataset", revision=data.revision)
            files, not_read = layout([file.path for file in tree], title, data.subsets, where)
            root = _snapshot(data, files, local_files_only=True)
        except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
            files, not_read = layout(_names_on_hub(data), title, data.subsets, where)
            root = _snapshot(data, files, local_files_only=False) if download else None
    if download and root is not None:
        for file in files:
            require_undamaged("data", root / file.name)
    return root, files, not_read


def _snapshot(data: Data, files: list[File], local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            data.name,
            repo_type="dataset",
            revision=data.revision,
            allow_patterns=[escape(file.name) for file in files],
            local_files_only=local_files_only,
        )
    )


def _names_on_hub(data: Data) -> list[str]:
    """Return the paths in the data set's repository, by one request without a retry."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(data.name, revision=data.revision, timeout=HUB_TIMEOUT_S)
    if not is_commit(data.revision):
        raise UserError(
            f"data.revision: {data.revision}; expected a commit of {data.name}, so that a later run reads the same "
            f"rows; its newest is data.revision={info.sha}"
        )
    return [sibling.rfilename for sibling in info.siblings or []]
