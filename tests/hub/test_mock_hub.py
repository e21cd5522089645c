"""The mock hub's routes and faults, asked with urllib alone: what it answers is what the programs under test will believe of the hub."""

import base64
import hashlib
import http.client
import json
import random
import time
import urllib.error
import urllib.request

import pytest
from mock_hub import MockHub
from mock_repos import git_blob

CONFIG = b'{"model_type": "llama"}\n'
WEIGHTS = random.Random(0).randbytes(100_000)
ROWS = b'{"text": "one"}\n{"text": "two"}\n'


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay)


def ask(hub, address, body=None, method=None, token=MockHub.token, **headers):
    """(status, headers, body) of the answer; redirects are not followed. A body that is no bytes is sent as JSON."""
    if body is not None and not isinstance(body, bytes):
        body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"} | headers
    address = address if address.startswith("http") else hub.url + address
    request = urllib.request.Request(address, body, {name.replace("_", "-"): value for name, value in headers.items()}, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        answer = OPENER.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers, answer.read()


def asked(hub, address, *arguments, status=200, **options):
    """The JSON of an answer that must have this status."""
    got, _, body = ask(hub, address, *arguments, **options)
    assert got == status, body
    return json.loads(body)


def download(hub, path="/org/name/resolve/main/model.safetensors", **headers):
    """A large file: to the hub, and on to the store without the token."""
    status, answer, _ = ask(hub, path)
    assert status == 302
    return ask(hub, answer["Location"], token=None, **headers)


def push(hub, *operations, repo="models/org/name", **header):
    lines = [{"key": "header", "value": {"summary": "a change", "description": ""} | header}]
    lines += [{"key": key, "value": value} for key, value in operations]
    return ask(hub, f"/api/{repo}/commit/main", b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def text_file(path, data):
    return "file", {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}


@pytest.fixture
def name(hub):
    return hub.add_repo("model", "org/name", {"config.json": CONFIG, "sub/a b#.txt": b"deep", "model.safetensors": WEIGHTS}, lfs={"*.safetensors"})


# Listings


def test_info(hub, name):
    name.card, name.info = {"license": "mit"}, {"downloads": 5}
    plain = asked(hub, "/api/models/org/name")
    assert plain["id"] == "org/name" and plain["sha"] == hub.commits("org/name")[0].id and plain["cardData"] == {"license": "mit"}
    assert plain["siblings"] == [{"rfilename": path} for path in ("config.json", "model.safetensors", "sub/a b#.txt")]
    assert asked(hub, f"/api/models/org/name/revision/{plain['sha']}") == plain
    blobs = {row.pop("rfilename"): row for row in asked(hub, "/api/models/org/name?blobs=true")["siblings"]}
    assert blobs["config.json"] == {"size": len(CONFIG), "blobId": git_blob(CONFIG)}
    assert blobs["model.safetensors"]["lfs"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert asked(hub, "/api/models/org/name?expand=downloads&expand=sha").keys() == {"_id", "id", "downloads", "sha"}


def test_tree(hub, name):
    rows = asked(hub, "/api/models/org/name/tree/main")
    assert [(row["type"], row["path"]) for row in rows] == [("file", "config.json"), ("file", "model.safetensors"), ("directory", "sub")]
    large = rows[1]
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{large['lfs']['oid']}\nsize 100000\n".encode()
    assert large["oid"] == git_blob(pointer) and large["lfs"]["pointerSize"] == len(pointer) and large["size"] == large["lfs"]["size"] == 100_000
    assert [row["path"] for row in asked(hub, "/api/models/org/name/tree/main/sub?recursive=true")] == ["sub/a b#.txt"]
    assert asked(hub, "/api/models/org/name/tree/main/no/such", status=404)
    hub.push("org/name", {"config.json": b"new"}, "newer")
    expanded = asked(hub, "/api/models/org/name/tree/main?expand=true")
    assert [row["lastCommit"]["title"] for row in expanded] == ["newer", "initial commit", "initial commit"]


def test_tree_in_pages(hub, name):
    hub.page_size, address, paths = 2, "/api/models/org/name/tree/main?recursive=true", []
    while address:
        _, headers, body = ask(hub, address)
        paths += [row["path"] for row in json.loads(body)]
        address = headers["Link"] and headers["Link"].split(">")[0][1:]
        assert not address or address.startswith(hub.url) and headers["Link"].endswith('; rel="next"')
    assert paths == ["config.json", "model.safetensors", "sub", "sub/a b#.txt"] and len(hub.requests("tree", status=200)) == 2


def test_paths_info(hub, name):
    address = "/api/models/org/name/paths-info/main"
    rows = asked(hub, address, {"paths": ["config.json", "sub", "missing"]})
    assert [row["path"] for row in rows] == ["config.json", "sub"]
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert "lastCommit" in asked(hub, address, b"paths=config.json&expand=True", **form)[0]


def test_refs_branches_and_commits(hub, name):
    first = hub.commits("org/name")[0].id
    second = hub.push("org/name", {"config.json": None, "new.txt": b"x"})
    assert ask(hub, "/api/models/org/name/branch/dev%2Fx", {"startingPoint": first})[0] == 201
    assert ask(hub, "/api/models/org/name/branch/dev%2Fx", {})[0] == 409
    asked(hub, "/api/models/org/name/tag/main", {"tag": "v1"})
    refs = asked(hub, "/api/models/org/name/refs")
    assert refs["branches"][1] == {"name": "dev/x", "ref": "refs/heads/dev/x", "targetCommit": first}
    assert refs["tags"] == [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": second}] and "pullRequests" not in refs
    assert [row["id"] for row in asked(hub, "/api/models/org/name/commits/main")] == [second, first]
    assert "config.json" in hub.files("org/name", "dev/x") and "config.json" not in hub.files("org/name", "v1")
    assert ask(hub, "/api/models/org/name/branch/dev%2Fx", method="DELETE")[0] == 200
    assert ask(hub, "/api/models/org/name/tree/dev%2Fx")[1]["X-Error-Code"] == "RevisionNotFound"


def test_repositories_may_have_no_owner_and_be_data_sets(hub):
    hub.add_repo("dataset", "words", {"data/train.parquet": WEIGHTS, "rows.jsonl": ROWS})
    assert len(asked(hub, "/api/datasets/words/tree/main?recursive=true")) == 3
    assert asked(hub, "/api/datasets/words/revision/main")["id"] == "words"
    assert ask(hub, "/datasets/words/resolve/main/rows.jsonl")[2] == ROWS
    assert download(hub, "/datasets/words/resolve/main/data/train.parquet")[2] == WEIGHTS
    assert ask(hub, "/api/models/words")[0] == 404


def test_converted_data_sets(hub):
    """The hub's own Parquet files of a data set are on a branch that is none of its branches."""
    hub.add_repo("dataset", "org/rows", {"rows.jsonl": ROWS})
    commit = hub.push("org/rows", {"rows.jsonl": None, "default/train/0000.parquet": WEIGHTS}, branch="refs/convert/parquet")
    refs = asked(hub, "/api/datasets/org/rows/refs")
    assert refs["converts"] == [{"name": "parquet", "ref": "refs/convert/parquet", "targetCommit": commit}] and len(refs["branches"]) == 1
    assert download(hub, "/datasets/org/rows/resolve/refs%2Fconvert%2Fparquet/default/train/0000.parquet")[2] == WEIGHTS
    assert list(hub.files("org/rows")) == ["rows.jsonl"]


def test_whoami(hub):
    assert asked(hub, "/api/whoami-v2")["auth"]["accessToken"]["role"] == "write"
    assert asked(hub, "/api/whoami-v2", token=hub.read_token)["auth"]["accessToken"]["role"] == "read"
    assert ask(hub, "/api/whoami-v2", token=None)[0] == 401


# Downloads


def test_small_files(hub, name):
    status, headers, body = ask(hub, "/org/name/resolve/main/sub/a%20b%23.txt")
    assert (status, body, headers["ETag"]) == (200, b"deep", f'"{git_blob(b"deep")}"')
    assert headers["X-Repo-Commit"] == hub.commits("org/name")[0].id
    status, headers, body = ask(hub, "/org/name/resolve/main/config.json", method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(CONFIG)), b"")
    assert ask(hub, "/org/name/resolve/main/config.json", If_None_Match=headers["ETag"])[0] == 304
    assert ask(hub, "/org/name/resolve/main/config.json", If_None_Match='"other"')[0] == 200


def test_small_files_behind_a_redirect(hub, name):
    hub.resolve_cache = True
    status, headers, _ = ask(hub, "/org/name/resolve/main/sub/a%20b%23.txt", method="HEAD")
    assert status == 307 and headers["Location"].startswith("/api/resolve-cache/models/org/name/") and not headers["ETag"]
    assert (headers["X-Linked-ETag"], headers["X-Linked-Size"]) == (f'"{git_blob(b"deep")}"', "4")
    assert ask(hub, headers["Location"])[2] == b"deep"


def test_large_files(hub, name):
    status, headers, _ = ask(hub, "/org/name/resolve/main/model.safetensors", method="HEAD")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert (status, headers["X-Linked-ETag"], headers["X-Linked-Size"]) == (302, f'"{sha256}"', "100000")
    assert headers["Location"].startswith(f"{hub.store_url}/cdn/{sha256}?") and "Signature=secret" in headers["Location"]
    assert int(headers["Content-Length"]) != 100_000 and headers["X-Repo-Commit"] and headers["X-Xet-Hash"]
    assert download(hub)[2] == WEIGHTS
    assert ask(hub, f"{hub.store_url}/cdn/{sha256}", token=None)[0] == 403
    hub.xet = False
    assert not ask(hub, "/org/name/resolve/main/model.safetensors")[1]["X-Xet-Hash"]


@pytest.mark.parametrize(
    "wanted, piece, told",
    [
        ("bytes=0-9", slice(0, 10), "bytes 0-9/100000"),
        ("bytes=99990-", slice(99_990, None), "bytes 99990-99999/100000"),
        ("bytes=99990-200000", slice(99_990, None), "bytes 99990-99999/100000"),
        ("bytes=-7", slice(-7, None), "bytes 99993-99999/100000"),
    ],
)
def test_ranges(hub, name, wanted, piece, told):
    status, headers, body = download(hub, Range=wanted)
    assert (status, body, headers["Content-Range"]) == (206, WEIGHTS[piece], told)
    assert hub.requests("GET /cdn/")[0].range == wanted


def test_range_behind_the_end(hub, name):
    status, headers, _ = download(hub, Range="bytes=100000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */100000")


def test_what_is_not_there(hub, name):
    def refusal(path, **options):
        status, headers, body = ask(hub, path, **options)
        assert json.loads(body)["error"] == headers["X-Error-Message"]
        return status, headers["X-Error-Code"]

    assert refusal("/org/name/resolve/main/missing") == (404, "EntryNotFound")
    assert refusal("/org/name/resolve/other/config.json") == (404, "RevisionNotFound")
    assert refusal("/api/models/org/name/revision/other") == (404, "RevisionNotFound")
    assert refusal("/api/models/org/missing") == (404, "RepoNotFound")
    assert refusal("/org/missing/resolve/main/config.json", token=None) == (401, "RepoNotFound")
    assert ask(hub, "/org/name/resolve/main/missing")[1]["X-Repo-Commit"] == hub.commits("org/name")[0].id


def test_other_case_and_former_names(hub, name):
    hub.add_repo("model", "org/Renamed", {"config.json": CONFIG}, aliases=["old/one"])
    status, headers, _ = ask(hub, "/Org/NAME/resolve/main/config.json?download=true", method="HEAD")
    assert (status, headers["Location"]) == (307, "/org/name/resolve/main/config.json?download=true")
    assert ask(hub, "/api/models/old/one/tree/main")[1]["Location"] == "/api/models/org/Renamed/tree/main"


# Who may


def test_wrong_token(hub, name):
    for path in ("/api/models/org/name", "/org/name/resolve/main/config.json"):
        status, headers, _ = ask(hub, path, token="hf_wrong")
        assert (status, headers["X-Error-Message"], headers["X-Error-Code"]) == (401, "Invalid credentials in Authorization header", None)
    assert {r.token for r in hub.log} == {"wrong"} and "hf_wrong" not in repr(hub.log)


def test_private(hub):
    hub.add_repo("model", "org/private", {"config.json": CONFIG}, private=True)
    for path in ("/api/models/org/private", "/org/private/resolve/main/config.json"):
        statuses = {token: ask(hub, path, token=token)[0] for token in (None, hub.stranger_token, hub.read_token, hub.token)}
        assert list(statuses.values()) == [401, 404, 200, 200]
    assert ask(hub, "/api/models/org/private", token=None)[1]["X-Error-Code"] == "RepoNotFound"


def test_gated(hub):
    hub.add_repo("model", "org/gated", {"config.json": CONFIG}, gated="manual", granted={hub.token})
    assert asked(hub, "/api/models/org/gated", token=None)["gated"] == "manual"
    for token, status in ((None, 401), (hub.read_token, 403)):
        got, headers, _ = ask(hub, "/org/gated/resolve/main/config.json", token=token)
        assert (got, headers["X-Error-Code"]) == (status, "GatedRepo") and headers["X-Error-Message"].startswith("Access to model org/gated")
    assert ask(hub, "/org/gated/resolve/main/config.json")[0] == 200


def test_who_may_write(hub, name):
    def status(token):
        return ask(hub, "/api/models/org/name/preupload/main", {"files": []}, token=token)[0]

    assert [status(token) for token in (None, hub.read_token, hub.stranger_token, hub.token)] == [401, 403, 403, 200]
    name.writable = False
    assert status(hub.token) == 403


def test_environment(hub, tmp_path):
    env = hub.env(tmp_path)
    assert (env["HF_ENDPOINT"], env["HF_HOME"], env["HF_TOKEN"], env["HTTPS_PROXY"]) == (hub.url, str(tmp_path), hub.token, "")
    assert hub.env(tmp_path, token=None)["HF_TOKEN"] == ""


# Uploads (large files: test_mock_xet.py)


def test_create(hub):
    asked_for = {"name": "new", "organization": "org", "type": "model", "private": True}
    assert asked(hub, "/api/repos/create", asked_for)["url"] == f"{hub.url}/org/new"
    assert asked(hub, "/api/repos/create", asked_for, status=409)["url"] == f"{hub.url}/org/new"
    assert list(hub.files("org/new")) == [".gitattributes"] and hub.repo("org/new").private
    asked(hub, "/api/repos/create", asked_for | {"organization": "elsewhere"}, status=403)
    asked(hub, "/api/repos/create", asked_for | {"name": "newer"}, status=403, token=hub.read_token)
    asked(hub, "/api/repos/create", asked_for, status=401, token=None)
    assert asked(hub, "/api/repos/create", {"name": "mine", "type": "dataset"})["url"] == f"{hub.url}/datasets/{hub.user}/mine"
    asked(hub, "/api/repos/delete", {"name": "mine", "type": "dataset"}, method="DELETE")
    assert ask(hub, f"/api/datasets/{hub.user}/mine")[0] == 404


def test_settings(hub, name):
    asked(hub, "/api/models/org/name/settings", {"private": True}, method="PUT")
    assert ask(hub, "/api/models/org/name", token=None)[0] == 401


def test_preupload(hub, name):
    files = [{"path": "config.json", "size": 3, "sample": ""}, {"path": "m.safetensors", "size": 3}, {"path": "long.txt", "size": 11 << 20}]
    rows = asked(hub, "/api/models/org/name/preupload/main", {"files": files})["files"]
    assert [row["uploadMode"] for row in rows] == ["regular", "lfs", "lfs"] and rows[0]["oid"] == git_blob(CONFIG)


def test_commit(hub, name):
    first = hub.commits("org/name")[0].id
    operations = [text_file("new/a.txt", b"one"), ("deletedFile", {"path": "config.json"}), ("deletedFolder", {"path": "sub"})]
    status, _, body = push(hub, *operations, parentCommit=first)
    answer = json.loads(body)
    assert status == 200 and answer["commitUrl"] == f"{hub.url}/org/name/commit/{answer['commitOid']}"
    assert hub.files("org/name") == {"new/a.txt": b"one", "model.safetensors": WEIGHTS}
    newest, before = hub.commits("org/name")
    assert (newest.id, newest.title, newest.parents) == (answer["commitOid"], "a change", (first,)) and before.files["config.json"] == CONFIG
    assert newest.operations == (("file", "new/a.txt"), ("deletedFile", "config.json"), ("deletedFolder", "sub"))


def test_commits_that_are_refused(hub, name):
    first = hub.commits("org/name")[0].id
    hub.push("org/name", {"other.txt": b"somebody else"})
    assert push(hub, text_file("a.txt", b"one"), parentCommit=first)[0] == 412
    hub.conflict_status = 409
    assert push(hub, text_file("a.txt", b"one"), parentCommit=first)[0] == 409
    status, _, body = push(hub, ("lfsFile", {"path": "new.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 5}))
    assert status == 400 and b"LFS pointer pointed to a file that does not exist" in body
    assert push(hub, ("deletedFile", {"path": "missing"}))[1]["X-Error-Code"] == "EntryNotFound"
    assert ask(hub, "/api/models/org/name/commit/main", b"nonsense")[0] == 400
    assert len(hub.commits("org/name")) == 2


def test_pull_request(hub, name):
    line = json.dumps({"key": "header", "value": {"summary": "please"}}).encode()
    answer = asked(hub, "/api/models/org/name/commit/main?create_pr=1", line, token=hub.read_token)
    assert answer["pullRequestUrl"] == f"{hub.url}/org/name/discussions/1" and len(hub.commits("org/name")) == 1
    assert asked(hub, "/api/models/org/name/revision/refs%2Fpr%2F1")["sha"] == answer["commitOid"]


# Faults


def test_failures_with_a_time_to_wait(hub, name):
    hub.fail("GET /api/models/org/name$", status=429, retry_after=1, times=2)
    answers = [ask(hub, "/api/models/org/name") for _ in range(3)]
    assert [(status, headers["Retry-After"]) for status, headers, _ in answers] == [(429, "1"), (429, "1"), (200, None)]
    assert [r.faults for r in hub.requests("org/name$")] == [["fail"], ["fail"], []]


def test_the_kth_request_fails_for_ever_or_until_told(hub, name):
    hub.fail("resolve/main/config.json", status=500, skip=1, times=None)
    assert [ask(hub, "/org/name/resolve/main/config.json")[0] for _ in range(4)] == [200, 500, 500, 500]
    hub.clear_faults()
    assert ask(hub, "/org/name/resolve/main/config.json")[0] == 200


def test_no_answer(hub, name):
    hub.fail("GET /api/whoami", status=None)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(hub, "/api/whoami-v2")
    assert hub.requests("whoami")[0].status == 0


def test_a_commit_whose_answer_is_lost(hub, name):
    hub.fail("POST .*/commit/", status=504, executed=True)
    assert push(hub, text_file("a.txt", b"one"))[0] == 504
    assert hub.files("org/name")["a.txt"] == b"one"


@pytest.mark.parametrize("after", [0, 1000, None])
def test_cut(hub, name, after):
    hub.cut('GET /cdn/.*filename="model.safetensors"', after=after)
    with pytest.raises(http.client.IncompleteRead) as cut:
        download(hub)
    got = cut.value.partial
    assert got == WEIGHTS[: len(got)] and (after is None or len(got) == after) and hub.requests("/cdn/")[0].sent == len(got)
    assert download(hub, Range=f"bytes={len(got)}-")[2] == WEIGHTS[len(got) :]


def test_small_files_are_cut_too(hub, name):
    hub.cut("config.json", after=3, times=None)
    for _ in range(2):
        with pytest.raises(http.client.IncompleteRead):
            ask(hub, "/org/name/resolve/main/config.json")
    assert ask(hub, "/org/name/resolve/main/config.json", method="HEAD")[0] == 200


def test_wrong_bytes(hub, name):
    hub.corrupt("GET /cdn/")
    assert download(hub)[2] == WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 0xFF])
    assert download(hub)[2] == WEIGHTS
    hub.corrupt("config.json", at=b"other")
    assert ask(hub, "/org/name/resolve/main/config.json")[2] == b"other"


def test_ignored_range(hub, name):
    hub.ignore_range("/cdn/")
    status, _, body = download(hub, Range="bytes=10-19")
    assert (status, body) == (200, WEIGHTS) and hub.requests("/cdn/")[0].faults == ["ignore_range"]


def test_slow(hub, name):
    hub.slow("/cdn/", pause=0.05, piece=25_000)
    start = time.monotonic()
    assert download(hub)[2] == WEIGHTS
    assert time.monotonic() - start >= 0.2


# The log


def test_log(hub, name):
    download(hub, Range="bytes=0-9")
    ask(hub, "/api/models/org/name", token=None)
    first, store, last = hub.log
    assert (first.method, first.path, first.status, first.token) == ("GET", "/org/name/resolve/main/model.safetensors", 302, "right")
    assert (store.token, store.range, store.status, store.sent) == ("none", "bytes=0-9", 206, 10) and last.token == "none"
    assert hub.token not in repr(hub.log) and "authorization" not in first.headers
    assert hub.requests(status=206) == [store] and hub.requests("^GET /api/") == [last]
    hub.clear_log()
    assert hub.requests() == []


def test_unknown_addresses(hub, name):
    assert ask(hub, "/api/models/org/name/no-such-thing")[0] == 404
    assert ask(hub, "/spaces/org/name/resolve/main/app.py")[0] == 404


def test_a_defect_of_the_mock_does_not_stay_hidden():
    with pytest.raises(AssertionError, match="the mock hub itself failed"):
        with MockHub() as hub:
            assert ask(hub, "/api/repos/create", {"type": "model"})[0] == 500
