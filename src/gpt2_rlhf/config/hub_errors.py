"""Turn what huggingface_hub raises, while a base model or a data set is fetched, into a line that says what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from gpt2_rlhf.config.errors import UserError

HUB_TIMEOUT_S = 5  # for the first request; a Hub that does not answer should show at once


@contextmanager
def hub_errors(part: Literal["model", "data"], name: str, revision: str | None) -> Iterator[None]:
    """Raise a UserError for every fault of the Hub, the network, the account or the disk inside the block.

    part: the settings that name the repository: `model.name` and `model.revision`, or those of `data`.
    """
    import httpx2  # the client that huggingface_hub 2 sends its requests with
    from huggingface_hub import errors

    what, page, local = {
        "model": ("model", f"https://huggingface.co/{name}", "set model.name to a local folder"),
        "data": ("data set", f"https://huggingface.co/datasets/{name}", "set data.path to a local copy"),
    }[part]
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(
            f"{part}.name: {name!r} is not the name of a {what} on the Hub; expected owner/name, or {local}"
        ) from error
    except errors.GatedRepoError as error:  # a subclass of RepositoryNotFoundError
        raise UserError(
            f"{part}.name: {name} is gated; accept its terms at {page}, then `hf auth login`, or {local}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{part}.name: the Hub has no {what} {name}, or it is private; check the spelling, or `hf auth login`, "
            f"or {local}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{part}.revision: {name} has no revision {revision}; choose one from {page}/commits/main"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "check your token with `hf auth whoami`" if status in (401, 403) else "try again later"
        raise UserError(f"{part}.name: the Hub answered {status} for {name}; {remedy}, or {local}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError(
            f"{part}.name: {name} is not downloaded and HF_HUB_OFFLINE is set; unset it for one run, or {local}, "
            f"or use {part}=embedded"
        ) from error
    except (httpx2.HTTPError, errors.LocalEntryNotFoundError, json.JSONDecodeError) as error:
        raise UserError(
            f"{part}.name: the Hub cannot be reached for {name} ({type(error.__cause__ or error).__name__}); "
            f"check the network, or {local}, or use {part}=embedded"
        ) from error
    except OSError as error:
        raise UserError(
            f"{part}.name: {name} cannot be downloaded ({error}); free disk space or set HF_HOME to another folder"
        ) from error
