"""What the hub holds: accounts, repositories with their commits and references, and uploaded LFS objects."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Account:
    """Who a token stands for, and what it may do."""

    name: str
    role: str = "write"  # of the token: read, write or fineGrained
    organisations: Mapping[str, str] = field(default_factory=dict)  # name: the account's role in it
    scopes: Mapping[str, list[str]] = field(default_factory=dict)  # of a fine-grained token, entity: permissions

    def whoami(self) -> dict[str, Any]:
        """The answer of GET /api/whoami-v2."""
        token: dict[str, Any] = {"displayName": "test", "role": self.role}
        if self.role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": n}, "permissions": p} for n, p in self.scopes.items()]
            token["fineGrained"] = {"global": [], "scoped": scoped}
        return {
            "type": "user",
            "name": self.name,
            "orgs": [{"type": "org", "name": n, "roleInOrg": role} for n, role in self.organisations.items()],
            "auth": {"type": "access_token", "accessToken": token},
        }

    def reads(self, namespace: str) -> bool:
        """Whether private repositories below this name are seen."""
        return namespace == self.name or namespace in self.organisations

    def writes(self, namespace: str) -> bool:
        """Whether repositories below this name may be made and changed."""
        if self.role == "fineGrained":
            return "repo.write" in self.scopes.get(namespace, [])
        return self.role == "write" and self.reads(namespace) and self.organisations.get(namespace) != "read"


@dataclass(frozen=True)
class Blob:
    """A file's content and whether it is kept by LFS."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        """What LFS names it by."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of the blob, for LFS that of the pointer."""
        return git_blob(self.pointer if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        """What names the content in a download."""
        return self.sha256 if self.is_lfs else self.oid

    @property
    def pointer(self) -> bytes:
        """The file that git holds in place of an LFS object."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()


@dataclass(frozen=True)
class Commit:
    """A whole tree, as path: blob."""

    sha: str
    parent: str | None
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """Commits by sha, and the branches and tags that point to them."""

    name: str
    is_private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, changed: Mapping[str, Blob]) -> Commit:
        """Put a commit on a branch, also an empty one: the Hub takes those too."""
        parent = self.branches.get(branch)
        files = {**(self.commits[parent].files if parent else {}), **changed}
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{parent} {title} {len(self.commits)}\n{listing}".encode()).hexdigest()
        made = Commit(sha, parent, title, files)
        self.commits[sha] = made
        self.branches[branch] = sha
        return made

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, tag or sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def history(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, newest first; the last is the one that made the repository."""
        found: list[Commit] = []
        sha = self.branches.get(branch)
        while sha is not None:
            found.append(self.commits[sha])
            sha = self.commits[sha].parent
        return found


def new_repository(name: str, is_private: bool) -> Repository:
    """A repository as the Hub makes it: with a first commit of .gitattributes."""
    repository = Repository(name, is_private)
    attributes = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
    repository.commit("main", "initial commit", {".gitattributes": attributes})
    return repository


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """How the Hub would keep a file: safetensors and what is large or binary by LFS."""
    is_binary = b"\0" in sample
    large = size >= 10_000_000 or (is_binary and size > 1_000_000)
    return "lfs" if path.endswith(".safetensors") or large else "regular"


def git_blob(content: bytes) -> str:
    """Git's sha1 of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
