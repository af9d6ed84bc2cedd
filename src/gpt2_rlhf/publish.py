"""Push the final model and its card to the Hub in one commit; whatever fails, everything stays on disk.

python -m gpt2_rlhf.publish publish.repo_id=user/name [key=value ...]
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpt2_rlhf import config
from gpt2_rlhf.errors import UserError, exit_with_one_line
from gpt2_rlhf.settings import Publish


def check(publish: Publish) -> None:
    """Refuse, before anything is trained, to publish without a name or without a token that the Hub knows.

    Raises:
        UserError: no repo_id, no token, a token that is refused or may only read, or a Hub out of reach.
    """
    from huggingface_hub import HfApi, get_token

    if publish.repo_id is None or publish.repo_id.count("/") != 1:
        raise UserError(f"publish.repo_id: {publish.repo_id!r}; wanted <user or organisation>/<name>")
    if get_token() is None:
        raise UserError("publish.repo_id: there is no Hub token on this machine; run `hf auth login` first")
    with _hub_errors():
        account = HfApi().whoami()
    if account["auth"]["accessToken"]["role"] == "read":
        raise UserError("publish.repo_id: your Hub token may only read; make one that may write, then `hf auth login`")


def push(publish: Publish, model_dir: Path) -> str:
    """Push the folder as one commit and return the repository's address."""
    from huggingface_hub import HfApi

    check(publish)
    api = HfApi()
    repo_id = str(publish.repo_id)
    with _hub_errors():
        api.create_repo(repo_id, private=publish.private, exist_ok=True)
        if bool(api.model_info(repo_id).private) != publish.private:  # create_repo leaves an existing one as it is
            raise UserError(f"publish.private: {publish.private}, but {repo_id} exists and is not so; change either")
        commit = api.upload_folder(repo_id=repo_id, folder_path=model_dir, commit_message="RLHF policy and its card")
    return str(commit.commit_url)


def main(argv: Sequence[str]) -> None:
    """Publish the newest run's model."""
    settings = config.load(argv)
    model_dir = Path(settings.output_dir) / "latest" / "model"
    if not model_dir.is_dir():
        raise UserError(f"{model_dir}: there is no finished model; run `make pipeline` first")
    print(f"pushed {model_dir} to {push(settings.publish, model_dir)}")


@contextmanager
def _hub_errors() -> Iterator[None]:
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:  # all that huggingface_hub 2.4 raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"publish: {first}; nothing is lost: `make publish` with the same overrides tries again"
        ) from error


if __name__ == "__main__":
    exit_with_one_line(lambda: main(sys.argv[1:]))
