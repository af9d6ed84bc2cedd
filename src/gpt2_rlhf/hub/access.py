"""Check whether an account may push to a repository, before anything is trained.

The Hub itself refuses only at the upload, and `create_repo(exist_ok=True)` succeeds with a read-only token if the
repository exists. So what GET /api/whoami-v2 says of the account and its token is read first.
"""

from collections.abc import Mapping
from typing import Any


def fault(account: Mapping[str, Any], repo_id: str, setting: str) -> str | None:
    """Return why the account may not write to `repo_id`, or None if nothing is known against it.

    account: the answer of GET /api/whoami-v2. setting: the setting that named the repository, for the message.
    """
    namespace = repo_id.partition("/")[0]
    if not _same(account["name"], namespace):
        organisations = account.get("orgs", [])
        organisation = next((one for one in organisations if _same(one["name"], namespace)), None)
        if organisation is None:
            names = ", ".join([account["name"], *(one["name"] for one in organisations)])
            problem = f"{namespace} is neither you nor an organisation of yours; expected one of {names}"
            return f"{setting}: {repo_id}: {problem}"
        if organisation.get("roleInOrg") == "read":
            return f"{setting}: {repo_id}: you may only read in {namespace}; ask its administrators for the role write"
    token = account.get("auth", {}).get("accessToken")
    if token is None:  # OAuth and job tokens have no role; the Hub decides at the upload
        return None
    if token["role"] == "read":
        return f"{setting}: your Hub token may only read; create one that may write, then `hf auth login`"
    if token["role"] == "fineGrained" and not _may_write(token, (namespace, repo_id)):
        return (
            f"{setting}: your fine-grained Hub token lacks repo.write on {namespace}; give it write access to the "
            f"contents of {namespace}'s repositories in its settings on the Hub"
        )
    return None


def _may_write(token: Mapping[str, Any], names: tuple[str, str]) -> bool:
    """Return whether a fine-grained token has repo.write on one of these: the namespace or the repository itself."""
    return any(
        "repo.write" in scope["permissions"]
        for scope in token.get("fineGrained", {}).get("scoped", [])
        if any(_same(scope["entity"].get("name", ""), name) for name in names)
    )


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()  # the Hub keeps the case of a name, and ignores it when it compares
