"""What the mock hub remembers: repositories, their commits and files, and how the hub's JSON speaks of them.

A repository is a history of commits, each with the whole tree {path: File}; branches and tags are names of commits. The ids are made
as git makes them where a client can check them (a file's blob id, an LFS file's pointer); commit and folder ids only look like git's.
"""

import fnmatch
import hashlib
from dataclasses import dataclass, field
from functools import cached_property

KINDS = {"model": "models", "dataset": "datasets"}
# What the .gitattributes of a new repository names, as far as tests of models and data sets meet it.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.gguf", "*.npz", "*.parquet", "*.arrow", "*.gz", "*.zip", "*.zst", "*.pt", "*.model")
LFS_FROM = 10 << 20  # bytes; the hub keeps no larger file in git itself


def git_blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file's bytes, as one commit has them."""

    data: bytes
    lfs: bool = False
    known_xet_hash: str = ""  # of an upload; files that tests put in get one that only this mock knows

    @property
    def size(self):
        return len(self.data)

    @cached_property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self):
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self):
        return git_blob(self.pointer if self.lfs else self.data)

    @cached_property
    def xet_hash(self):
        return self.known_xet_hash or hashlib.sha256(b"xet of " + self.sha256.encode()).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid

    def lfs_json(self, name):
        """The tree calls an LFS file's hash `oid`, a repository's `siblings` call it `sha256`."""
        return {name: self.sha256, "size": self.size, "pointerSize": len(self.pointer)}


@dataclass(frozen=True)
class Commit:
    id: str
    parents: tuple
    title: str
    description: str
    author: str
    number: int  # within the repository; also tells the time
    tree: dict  # {path: File}
    operations: tuple = ()  # what the commit's request asked for: ("file" | "lfsFile" | "deletedFile" | "deletedFolder", path)

    @property
    def date(self):
        return f"2026-01-01T{self.number // 3600 % 24:02}:{self.number // 60 % 60:02}:{self.number % 60:02}.000Z"

    @property
    def files(self):
        return {path: file.data for path, file in self.tree.items()}

    def json(self):
        message = f"{self.title}\n\n{self.description}".strip()
        author = {"user": self.author, "avatar": ""}
        return {"id": self.id, "title": self.title, "message": message, "authors": [author], "date": self.date, "parents": list(self.parents)}


@dataclass
class Repo:
    kind: str  # "model" or "dataset"
    id: str
    lfs: tuple = LFS_PATTERNS
    private: bool = False
    gated: object = False  # False, "auto" or "manual"
    granted: set = field(default_factory=set)  # tokens that may read a gated repository's files
    writable: bool = True
    card: dict = None
    info: dict = field(default_factory=dict)  # further keys of the repository's JSON: downloads, tags, config, safetensors, …
    history: dict = field(default_factory=dict)  # {commit id: Commit}
    branches: dict = field(default_factory=dict)  # {name: commit id}
    tags: dict = field(default_factory=dict)
    pull_requests: dict = field(default_factory=dict)  # {"refs/pr/1": commit id}

    @property
    def prefix(self):
        """In front of the id in the addresses of pages and files."""
        return "" if self.kind == "model" else KINDS[self.kind] + "/"

    def is_lfs(self, path, size=0):
        name = path.rsplit("/", 1)[-1]
        return size > LFS_FROM or any(fnmatch.fnmatch(path, p) or fnmatch.fnmatch(name, p) for p in self.lfs)

    def commit(self, tree, title, author, description="", branch="main", operations=(), parent=None):
        """Puts a new commit onto the branch (or pull request) and returns it."""
        names = self.pull_requests if branch.startswith("refs/pr/") else self.branches
        parent = parent or names.get(branch)
        number = len(self.history)
        content = "".join(f"{path}:{file.oid}\n" for path, file in sorted(tree.items()))
        id = hashlib.sha1(f"{self.kind} {self.id} {number} {parent} {title}\n{content}".encode()).hexdigest()
        self.history[id] = Commit(id, (parent,) if parent else (), title, description, author, number, dict(sorted(tree.items())), operations)
        names[branch] = id
        return self.history[id]

    def at(self, revision):
        """The commit of a branch, tag or (beginning of a) commit id; None where there is none."""
        names = {**self.pull_requests, **self.tags, **self.branches}
        id = names.get(revision) or names.get(revision.removeprefix("refs/heads/"))
        if not id and len(revision) >= 7:
            id = next((id for id in self.history if id.startswith(revision)), None)
        return self.history.get(id)

    def log(self, commit):
        """The commit and those before it, newest first."""
        while commit:
            yield commit
            commit = self.history[commit.parents[0]] if commit.parents else None

    def last_change(self, path, commit):
        """The newest commit that made the file or folder what it is."""

        def under(some):
            return {p: f.oid for p, f in some.tree.items() if p == path or p.startswith(path + "/")}

        last = commit
        for earlier in self.log(commit):
            if under(earlier) != under(commit):
                break
            last = earlier
        return last

    def json(self, commit, blobs=False, expand=()):
        everything = {
            "_id": hashlib.sha1(self.id.encode()).hexdigest()[:24],
            "id": self.id,
            "author": self.id.split("/")[0] if "/" in self.id else None,
            "sha": commit.id if commit else None,
            "lastModified": commit.date if commit else "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "private": self.private,
            "gated": self.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "usedStorage": sum(f.size for f in commit.tree.values()) if commit else 0,
            "siblings": [sibling(path, file, blobs) for path, file in commit.tree.items()] if commit else [],
        }
        if self.kind == "model":
            everything["modelId"] = self.id
        if self.card is not None:
            everything["cardData"] = self.card
        everything.update(self.info)
        if expand:
            return {key: value for key, value in everything.items() if key in ("_id", "id", *expand)}
        return everything

    def entry(self, path, commit, expand=False, xet=False):
        """One row of the tree: a file or a folder; None where there is neither."""
        file = commit.tree.get(path)
        if file:
            row = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            if file.lfs:
                row["lfs"] = file.lfs_json("oid")
                if xet:
                    row["xetHash"] = file.xet_hash
        elif any(p.startswith(path + "/") for p in commit.tree):
            inside = "".join(f"{p}{f.oid}" for p, f in commit.tree.items() if p.startswith(path + "/"))
            row = {"type": "directory", "oid": hashlib.sha1(inside.encode()).hexdigest(), "size": 0, "path": path}
        else:
            return None
        if expand:
            last = self.last_change(path, commit)
            row["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
            if file:
                row["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return row

    def tree(self, folder, commit, recursive):
        """Paths of the files and folders in a folder ("" is the top), in the hub's order: as git sorts them."""
        start = folder + "/" if folder else ""
        paths = set()
        for path in commit.tree:
            if path.startswith(start):
                parts = path[len(start) :].split("/")
                for depth in range(1, len(parts) + 1 if recursive else 2):
                    paths.add(start + "/".join(parts[:depth]))
        return sorted(paths)

    def refs(self, pull_requests):
        def rows(names, folder):
            return [{"name": name.removeprefix(folder), "ref": folder + name.removeprefix(folder), "targetCommit": id} for name, id in names.items()]

        converted = {name: id for name, id in self.branches.items() if name.startswith("refs/convert/")}
        plain = {name: id for name, id in self.branches.items() if name not in converted}
        answer = {"branches": rows(plain, "refs/heads/"), "tags": rows(self.tags, "refs/tags/"), "converts": rows(converted, "refs/convert/")}
        if pull_requests:
            answer["pullRequests"] = rows(self.pull_requests, "")
        return answer


def sibling(path, file, blobs):
    row = {"rfilename": path}
    if blobs:
        row |= {"size": file.size, "blobId": file.oid}
        if file.lfs:
            row["lfs"] = file.lfs_json("sha256")
    return row
