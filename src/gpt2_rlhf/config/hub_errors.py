"""Turn what goes wrong while a base model or a data set is fetched from the Hub into a line that says what to do."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from gpt2_rlhf.config.errors import UserError, one_line

Part = Literal["model", "data"]  # the settings that name a repository
HUB_TIMEOUT_S = 5  # for the first request; a Hub that does not answer should show at once


def is_commit(revision: str | None) -> bool:
    """Return whether it is the full name of a commit, whose files never change."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def require_undamaged(part: Part, path: Path) -> None:
    """Raise a UserError for a file of the Hub's cache that has another hash than the name under which it is kept.

    That name is the sha256 of an LFS file, or what Git calls any other file. Files outside of a cache pass.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", blob.name):
        return
    from huggingface_hub.utils.sha import git_hash, sha_fileobj  # takes a fifth of a second to import

    with blob.open("rb") as file:
        digest = sha_fileobj(file).hex() if len(blob.name) == 64 else git_hash(file.read())
    if digest != blob.name:
        heal = shlex.join(["rm", str(blob)])
        raise UserError(f"{part}.name: {path.name} is damaged in the cache of the Hub; {heal}   and run this again")


@contextmanager
def hub_errors(part: Part, name: str, revision: str | None) -> Iterator[None]:
    """Raise a UserError for every fault of the Hub, the network, the account or the disk inside the block.

    No address with a query is shown: it can be signed.
    """
    import httpx2  # the client that huggingface_hub 2 sends its requests with
    from huggingface_hub import errors

    what, page, local = {
        "model": ("model", f"https://huggingface.co/{name}", "set model.name to a local folder"),
        "data": ("data set", f"https://huggingface.co/datasets/{name}", "set data.path to a local copy"),
    }[part]

    def refused(text: str, setting: str = "name") -> UserError:
        return UserError(f"{part}.{setting}: {text}")

    try:
        try:
            yield
        except errors.LocalEntryNotFoundError as error:  # of a file that is not in the cache; the cause says why
            raise (error.__cause__ or error) from None
    except errors.HFValidationError as error:
        raise refused(f"{name!r} is not the name of a {what} on the Hub; expected owner/name, or {local}") from error
    except errors.GatedRepoError as error:  # a subclass of RepositoryNotFoundError
        raise refused(f"{name} is gated; accept its terms at {page}, then `hf auth login`, or {local}") from error
    except errors.RepositoryNotFoundError as error:
        raise refused(
            f"the Hub has no {what} {name}, or it is private; check the spelling, or `hf auth login`, or {local}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise refused(f"{name} has no revision {revision}; choose one from {page}/commits/main", "revision") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check your token with `hf auth whoami`" if status in (401, 403) else "try again later"
        raise refused(f"the Hub answered {status} for {name}; {remedy}, or {local}") from error
    except errors.OfflineModeIsEnabled as error:
        raise refused(
            f"{name} is not downloaded and HF_HUB_OFFLINE is set; unset it for one run, or {local}, "
            f"or use {part}=embedded"
        ) from error
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError, json.JSONDecodeError) as error:
        raise refused(
            f"the Hub cannot be reached for {name} ({type(error).__name__}); check the network, or {local}, "
            f"or use {part}=embedded"
        ) from error
    except (OSError, RuntimeError) as error:  # Xet raises RuntimeError
        raise refused(
            f"{name} cannot be downloaded ({one_line(error)}); check the network, free disk space, or set HF_HOME to "
            "another folder, which can be written to"
        ) from error
