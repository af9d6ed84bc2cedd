"""Hold what the hub knows: accounts, files, and repositories with their commits, branches and tags."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Account:
    """The account of a token, and what the token may do."""

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
        """Return whether the account may read private repositories in this namespace."""
        return namespace == self.name or namespace in self.organisations

    def writes(self, namespace: str) -> bool:
        """Return whether the account may create and change repositories in this namespace."""
        if self.role == "fineGrained":
            return "repo.write" in self.scopes.get(namespace, [])
        return self.role == "write" and self.reads(namespace) and self.organisations.get(namespace) != "read"


@dataclass(frozen=True)
class Blob:
    """The content of a file, and whether LFS keeps it."""

    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        """The name of the content in LFS."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The name of the blob in Git, for LFS that of the pointer."""
        return git_blob(self.pointer if self.is_lfs else self.content)

    @property
    def etag(self) -> str:
        """The ETag of a download."""
        return self.sha256 if self.is_lfs else self.oid

    @property
    def pointer(self) -> bytes:
        """The file that Git holds in place of an LFS object."""
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

    def commit(self, branch: str, title: str, changed: Mapping[str, Blob], deleted: Collection[str] = ()) -> Commit:
        """Add a commit to a branch; it may be empty, as on the Hub."""
        parent = self.branches.get(branch)
        files = {**(self.commits[parent].files if parent else {}), **changed}
        files = {path: blob for path, blob in files.items() if path not in deleted}
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{parent} {title} {len(self.commits)}\n{listing}".encode()).hexdigest()
        made = Commit(sha, parent, title, files)
        self.commits[sha] = made
        self.branches[branch] = sha
        return made

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, tag or sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the newest commit up to this one that changed the file."""
        parent = self.commits.get(commit.parent or "")
        unchanged = parent is not None and parent.files.get(path) == commit.files.get(path)
        return self.last_change(parent, path) if parent is not None and unchanged else commit

    def history(self, branch: str = "main") -> list[Commit]:
        """Return the commits of a branch, newest first; the last is the first commit of the repository."""
        found: list[Commit] = []
        sha = self.branches.get(branch)
        while sha is not None:
            found.append(self.commits[sha])
            sha = self.commits[sha].parent
        return found


def new_repository(name: str, is_private: bool) -> Repository:
    """Return a repository as the Hub creates it: its first commit holds .gitattributes."""
    repository = Repository(name, is_private)
    attributes = Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_lfs=False)
    repository.commit("main", "initial commit", {".gitattributes": attributes})
    return repository


def upload_mode(path: str, size: int, sample: bytes) -> str:
    """Return how the Hub keeps a file: safetensors, large and binary files by LFS."""
    is_binary = b"\0" in sample
    large = size >= 10_000_000 or (is_binary and size > 1_000_000)
    return "lfs" if path.endswith(".safetensors") or large else "regular"


def git_blob(content: bytes) -> str:
    """Return the sha1 of a file in Git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
