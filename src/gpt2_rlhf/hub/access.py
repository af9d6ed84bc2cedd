"""May this account push to that name? The Hub's own answer comes late: with 403 at the upload, after the training.

`create_repo(exist_ok=True)` succeeds with a read-only token where the repository exists, so the account is read first.
"""

from collections.abc import Mapping
from typing import Any


def fault(account: Mapping[str, Any], repo_id: str, setting: str) -> str | None:
    """Why the account may not write to `repo_id`, None if nothing speaks against it.

    account: what GET /api/whoami-v2 answers. setting: where the name was given, for the message.
    """
    namespace = repo_id.partition("/")[0]
    if (problem := _namespace_fault(account, namespace)) is not None:
        return f"{setting}: {repo_id}: {problem}"
    token = account.get("auth", {}).get("accessToken")
    if token is None:  # OAuth and job tokens carry no role; the Hub will say
        return None
    if token["role"] == "read":
        return f"{setting}: your Hub token may only read; make one that may write, then `hf auth login`"
    if token["role"] == "fineGrained" and not _may_write(token, namespace, repo_id):
        return (
            f"{setting}: your fine-grained Hub token lacks repo.write on {namespace}; give it write access to the "
            f"contents of {namespace}'s repositories in its settings on the Hub"
        )
    return None


def _namespace_fault(account: Mapping[str, Any], namespace: str) -> str | None:
    if _same(account["name"], namespace):
        return None
    organisations = account.get("orgs", [])
    organisation = next((o for o in organisations if _same(o["name"], namespace)), None)
    if organisation is None:
        names = ", ".join([account["name"], *(o["name"] for o in organisations)])
        return f"{namespace} is neither you nor an organisation of yours; wanted one of {names}"
    if organisation.get("roleInOrg") == "read":
        return f"you may only read in {namespace}; ask its administrators for the role write"
    return None


def _may_write(token: Mapping[str, Any], namespace: str, repo_id: str) -> bool:
    """Whether a scope of a fine-grained token, on the namespace or on the repository itself, has repo.write."""
    return any(
        "repo.write" in scope["permissions"]
        for scope in token.get("fineGrained", {}).get("scoped", [])
        if _same(scope["entity"].get("name", ""), namespace) or _same(scope["entity"].get("name", ""), repo_id)
    )


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()  # the Hub's names keep their case and ignore it
