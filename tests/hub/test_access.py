from typing import Any

import pytest

from gpt2_rlhf.hub import access
from helpers.local_hub.store import Account

SCOPED = {"somebody": ["repo.content.read"], "lab": ["repo.content.read", "repo.write"]}


@pytest.mark.parametrize(
    ("account", "repo_id"),
    [
        (Account("somebody"), "somebody/demo"),
        (Account("Somebody"), "somebody/demo"),
        (Account("somebody", organisations={"lab": "write"}), "lab/demo"),
        (Account("somebody", "fineGrained", {"lab": "admin"}, SCOPED), "lab/demo"),
        (Account("somebody", "fineGrained", {}, {"somebody/demo": ["repo.write"]}), "somebody/demo"),
    ],
)
def test_an_account_that_may_write_has_no_fault(account: Account, repo_id: str) -> None:
    assert access.fault(account.whoami(), repo_id, "publish.repo_id") is None


@pytest.mark.parametrize(
    ("account", "repo_id", "words"),
    [
        (Account("somebody", "read"), "somebody/demo", "your Hub token may only read"),
        (
            Account("somebody"),
            "other/demo",
            "other is neither you nor an organisation of yours; expected one of somebody",
        ),
        (Account("somebody", organisations={"lab": "read"}), "lab/demo", "you may only read in lab"),
        (Account("somebody", "fineGrained", {}, SCOPED), "somebody/demo", "lacks repo.write on somebody"),
        (Account("somebody", "fineGrained", {}, {"somebody/other": ["repo.write"]}), "somebody/demo", "repo.write"),
    ],
)
def test_the_right_that_an_account_lacks_is_named(account: Account, repo_id: str, words: str) -> None:
    assert words in str(access.fault(account.whoami(), repo_id, "publish.repo_id"))


def test_a_token_without_a_role_is_not_refused() -> None:
    oauth: dict[str, Any] = {"name": "somebody", "orgs": [], "auth": {"type": "oauth"}}
    assert access.fault(oauth, "somebody/demo", "publish.repo_id") is None
