"""A Hugging Face hub on this machine for the tests: repositories, downloads, uploads, and whatever goes wrong with them.

    with MockHub() as hub:
        hub.add_repo("model", "org/name", {"config.json": b"{}", "model.safetensors": weights}, lfs={"*.safetensors"})
        hub.cut("GET /cdn/.*model.safetensors", after=1000)
        run("download", "org/name", environment=hub.env(tmp_path))
        assert [r.range for r in hub.requests("GET /cdn/")] == [None, "bytes=1000-"]

It does what the real hub does towards hf-hub 1.0.0 (Rust) and huggingface_hub (Python), with the real one's statuses, headers and
refusals. It is a server with two ports, since the real hub sends clients to other hosts for large files: `url` has the API and the
small files, `store_url` the large ones and Xet's storage (which checks uploaded bytes, but no BLAKE3 hashes; see mock_xet.py).

Tests may set its attributes at any time:
    page_size        rows of a listing before it goes on at another address
    xet              whether large files can be downloaded through Xet too (they say so in X-Xet-Hash)
    resolve_cache    whether small files are behind a relative redirect (307), as they are on the real hub today
    lfs_transfer     "xet" or "basic": how large files are to be uploaded
    xorb_grants      whether xorbs are uploaded to addresses of the store instead of the storage's own route
    shard_version    2, or 1: the storage knows only the older way of uploading shards
    conflict_status  status of a commit whose parent is no longer the newest
    xet_token_seconds  how long a token for Xet's storage is good
"""

import random
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mock_api
import mock_files
import mock_xet
from mock_http import Fault, Handler, Refused, json_reply, unix_time
from mock_repos import LFS_PATTERNS, File, Repo

ROUTES = mock_api.ROUTES + mock_files.ROUTES
STORE_ROUTES = mock_files.STORE_ROUTES + mock_xet.STORE_ROUTES
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client's idle connection must not hold up the end of a test
    request_queue_size = 64


class MockHub:
    token = "hf_theRightToken"  # may read everything and write wherever a repository is writable
    read_token = "hf_theReadToken"  # of the same user, may only read
    stranger_token = "hf_aStrangersToken"  # of another user: sees no private repository, writes nowhere

    def __init__(self, user="tester", orgs=("org",), seed=0):
        self.user, self.orgs = user, tuple(orgs)
        self.page_size, self.xet, self.resolve_cache = 1000, True, False
        self.lfs_transfer, self.xorb_grants, self.shard_version, self.conflict_status, self.xet_token_seconds = "xet", False, 2, 412, 3600
        self.repos, self.aliases = {}, {}  # {(kind, id): Repo}, {(kind, former id): id}
        self.large_files, self.stored = {}, {}  # by SHA-256: files that commits may name, bytes that the store gives out
        self.xorbs, self.xet_files, self.granted_uploads, self.xet_tokens = {}, {}, {}, {}
        self.log, self.faults, self.errors = [], [], []
        self.random, self.lock, self.stopping, self.number = random.Random(seed), threading.RLock(), threading.Event(), 0

    def __enter__(self):
        self.servers = []
        for store in (False, True):
            server = Server(("127.0.0.1", 0), Handler)
            server.hub, server.store = self, store
            threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
            self.servers.append(server)
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)
        self.cas_url = self.store_url
        return self

    def __exit__(self, *failure):
        self.stopping.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        if self.errors and not failure[0]:
            raise AssertionError("the mock hub itself failed") from self.errors[0]

    def env(self, home, token=token):
        """Environment of a client: this hub, a home of its own, the token (None for no login), no proxy.

        Proxies become empty strings, which clients take for unset; places are named that other variables could have moved.
        """
        home = Path(home)
        cleared = dict.fromkeys([*PROXIES, *map(str.upper, PROXIES)], "")
        paths = {"HF_HOME": home, "HF_HUB_CACHE": home / "hub", "HF_XET_CACHE": home / "xet", "HF_TOKEN_PATH": home / "token"}
        plain = {"HF_ENDPOINT": self.url, "HF_TOKEN": token or "", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return cleared | {name: str(path) for name, path in paths.items()} | plain

    # Repositories

    def add_repo(self, kind, id, files={}, lfs=LFS_PATTERNS, message="initial commit", aliases=(), **settings):
        """A repository with one commit of {path: bytes}. `lfs` names the files that are large ones, whatever their size.

        Settings: private, gated ("auto" or "manual"), granted (tokens that may read the gated files), writable, card (the card's data),
        info (further keys of the repository's JSON). `aliases` are former names, which lead here.
        """
        repo = Repo(kind, id, lfs=tuple(lfs), **settings)
        repo.granted = set(repo.granted)
        repo.commit({path: File(data, lfs=repo.is_lfs(path, len(data))) for path, data in files.items()}, message, self.user)
        with self.lock:
            self.repos[kind, id] = repo
            self.aliases |= {(kind, alias): id for alias in aliases}
        return repo

    def push(self, id, files, message="update", branch="main", kind=None):
        """A commit by somebody else: {path: bytes, or None to delete}. Returns its id."""
        with self.lock:
            repo = self.repo(id, kind)
            base = repo.at(branch) or repo.at("main")
            tree = {path: file for path, file in base.tree.items() if path not in files}
            tree |= {path: File(data, lfs=repo.is_lfs(path, len(data))) for path, data in files.items() if data is not None}
            return repo.commit(tree, message, "somebody", branch=branch, parent=base.id).id

    def repo(self, id, kind=None):
        return next(repo for (k, i), repo in self.repos.items() if i == id and kind in (None, k))

    def commits(self, id, rev="main", kind=None):
        """The commits of a branch, newest first: each has id, title, description, files and operations."""
        repo = self.repo(id, kind)
        return list(repo.log(repo.at(rev)))

    def files(self, id, rev="main", kind=None):
        return self.repo(id, kind).at(rev).files

    # Faults. `pattern` is searched in "METHOD /path?query", unescaped; `times` requests are struck (None: all) after the first `skip`.

    def fail(self, pattern, status=503, retry_after=None, times=1, skip=0, message="mock failure", code=None, executed=False):
        """Answers with this status, or with none at all (None: the connection is closed).

        The k-th request fails with skip=k-1. If `executed`, what was asked is done all the same: the client just does not learn of it.
        """
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        reply = Refused(status, message, code, headers).reply if status else None
        return self.add_fault("fail", pattern, times, skip, reply=reply, executed=executed)

    def cut(self, pattern, after=None, times=1, skip=0):
        """Closes the connection after so many bytes of a file or range (None: a random number)."""
        return self.add_fault("cut", pattern, times, skip, after=after)

    def corrupt(self, pattern, times=1, skip=0, at=-1):
        """Sends a file or range with one byte changed (the last, unless told), or, if `at` is bytes, with these in its place."""

        def change(body):
            if isinstance(at, bytes):
                return at
            changed = bytearray(body)
            if changed:
                changed[at] ^= 0xFF
            return bytes(changed)

        return self.add_fault("corrupt", pattern, times, skip, change=change)

    def slow(self, pattern, pause=0.05, piece=1024, times=None, skip=0):
        """Sends a file or range in pieces, each after a pause of so many seconds."""
        return self.add_fault("slow", pattern, times, skip, pause=pause, piece=piece)

    def ignore_range(self, pattern, times=1, skip=0):
        """Sends the whole file (200) where a range was asked for."""
        return self.add_fault("ignore_range", pattern, times, skip)

    def add_fault(self, kind, pattern, times, skip, **settings):
        fault = Fault(kind, pattern, times, skip, settings)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self):
        with self.lock:
            self.faults.clear()

    def strike(self, kind, request):
        """The first fault of this kind that strikes the request."""
        with self.lock:
            fault = next((f for f in self.faults if f.kind == kind and f.strikes(request.line)), None)
            if fault:
                request.faults.append(kind)
            return fault

    # What happened

    def requests(self, pattern="", **attributes):
        """The requests so far whose "METHOD /path?query" fits and whose attributes (status, token, range, …) are these."""
        with self.lock:
            return [r for r in self.log if re.search(pattern, r.line) and all(getattr(r, k) == v for k, v in attributes.items())]

    def clear_log(self):
        with self.lock:
            self.log.clear()

    # For the routes

    def next_number(self):
        with self.lock:
            self.number += 1
            return self.number

    def whose(self, secret):
        if not secret:
            return "none"
        if secret in self.xet_tokens:
            return "xet"
        return {self.token: "right", self.read_token: "read", self.stranger_token: "stranger"}.get(secret, "wrong")

    def new_xet_token(self, write):
        token = f"xet_secret_{self.next_number()}"
        self.xet_tokens[token] = (write, unix_time() + self.xet_token_seconds)
        return token

    def xet_access(self, token):
        """Whether the token may write; None if it is good for nothing."""
        write, expires = self.xet_tokens.get(token, (False, 0))
        return write if unix_time() < expires else None

    def answer(self, request, store=False):
        path = urlsplit(request.target).path
        for methods, pattern, route in STORE_ROUTES if store else ROUTES:
            parts = re.fullmatch(pattern, path)
            if parts and request.method in methods.split():
                if not store and request.token == "wrong":
                    raise Refused(401, "Invalid credentials in Authorization header")
                named = {name: value and unquote(value) for name, value in parts.groupdict().items()}
                with self.lock:
                    return route(self, request, **named)
        return json_reply({"error": "Sorry, we can't find the page you are looking for."}, 404)
