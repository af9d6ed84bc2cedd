"""Get a Hub data set's files at its pinned commit, from the cache if they are all there, and say clearly why not.

A download that broke off leaves some of the files. huggingface_hub keeps the listing of the commit beside them, so that
offline the whole can be told from a part, which would train a model on half of the data.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from gpt2_rlhf.config.errors import UserError
from gpt2_rlhf.config.settings import Data
from gpt2_rlhf.rows.layout import File, layout

HUB_TIMEOUT_S = 5
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(data: Data) -> tuple[Path | None, list[File]]:
    """The files to read of a Hub data set, and the folder they lie in; None if some must still be downloaded.

    Once all are there, no request is made: a commit does not change.

    Raises:
        UserError: the Hub has no such data set, revision or subset, gives no access, or cannot be reached.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    title, where = data.name.rpartition("/")[2], f"{data.name} on the Hub"
    with _hub_errors(data):
        try:
            if not _is_commit(data.revision):
                raise CachedRepoTreeNotFoundError  # a branch moves, so what is here may be an older state of it
            tree = get_cached_repo_tree(data.name, repo_type="dataset", revision=data.revision)
            files = layout([file.path for file in tree], title, data.subsets, where)
            root = snapshot_download(
                data.name,
                repo_type="dataset",
                revision=data.revision,
                allow_patterns=[escape(file.name) for file in files],
                local_files_only=True,
            )
            return Path(root), files
        except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
            return None, layout(_names_on_hub(data), title, data.subsets, where)


def _names_on_hub(data: Data) -> list[str]:
    """The paths in the data set's repository; one request, one try."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(data.name, revision=data.revision, timeout=HUB_TIMEOUT_S)
    if not _is_commit(data.revision):
        raise UserError(
            f"data.revision: {data.revision}; wanted a commit of {data.name}, so that a later run reads the same rows; "
            f"its newest is data.revision={info.sha}"
        )
    return [sibling.rfilename for sibling in info.siblings or []]


def _is_commit(revision: str | None) -> bool:
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def download(data: Data) -> tuple[Path, list[File]]:
    """As `locate`, with whatever is missing downloaded.

    Raises:
        UserError: as `locate`.
    """
    from huggingface_hub import snapshot_download

    root, files = locate(data)
    if root is None:
        with _hub_errors(data):
            patterns = [escape(file.name) for file in files]
            root = Path(
                snapshot_download(data.name, repo_type="dataset", revision=data.revision, allow_patterns=patterns)
            )
    return root, files


@contextmanager
def _hub_errors(data: Data) -> Iterator[None]:
    """Turn what huggingface_hub raises into a line that says what to do."""
    import httpx2  # what huggingface_hub 2 sends its requests with
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/datasets/{data.name}"
    local = "or set data.path to a local copy"
    try:
        yield
    except HFValidationError as error:
        raise UserError(
            f"data.name: {data.name!r} is no name of a Hub data set; wanted owner/name; "
            "for a local file or folder set data.path"
        ) from error
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise UserError(
            f"data.name: {data.name} is gated; accept its terms at {page}, then `hf auth login`, {local}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"data.name: the Hub has no data set {data.name}, or it is private; check the spelling, "
            f"or `hf auth login`, {local}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"data.revision: {data.name} has no revision {data.revision}; take one from {page}/commits/main"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check your token with `hf auth whoami`" if status in (401, 403) else "try again later"
        raise UserError(f"data.name: the Hub answered {status} for {data.name}; {remedy}, {local}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"data.name: {data.name} is not downloaded and HF_HUB_OFFLINE is set; unset it for one run, {local}"
        ) from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        raise UserError(
            f"data.name: the Hub cannot be reached for {data.name} ({type(error.__cause__ or error).__name__}); "
            f"check the network, {local}, or use data=embedded"
        ) from error
    except OSError as error:
        raise UserError(
            f"data.name: {data.name} cannot be downloaded ({error}); make room or set HF_HOME to another folder"
        ) from error
