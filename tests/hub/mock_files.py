"""The mock hub's routes of file contents: /ID/resolve/…, the store of large files it sends clients to, and LFS's upload of them.

The store answers at another port, that is, as another host: a client must not send it the user's token, and its addresses are secrets
that must not show up in messages. Their query names the file, so faults can be set by it: hub.cut("GET /cdn/.*model.safetensors").
"""

from urllib.parse import quote

from mock_api import ID, authenticated, find, find_commit, may_read, singular
from mock_http import Refused, Reply, file_reply, json_reply, redirect
from mock_repos import File

PREFIX = r"/(?:(?P<kind>datasets)/)?"
SECRET = "secret-of-the-store"


def resolve(hub, request, kind, id, revision, path):
    repo = find(hub, request, singular(kind or "models"), id)
    may_read(hub, request, repo)
    commit = find_commit(repo, revision)
    about = {"X-Repo-Commit": commit.id}
    file = commit.tree.get(path)
    if not file:
        raise Refused(404, "Entry not found", "EntryNotFound", about)
    about |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.etag}"'}
    if not file.lfs:
        if hub.resolve_cache:
            target = f"/api/resolve-cache/{kind or 'models'}/{id}/{commit.id}/{quote(path, safe='')}"
            return redirect(307, f"{target}?{quote(request.target, safe='')}=&etag=%22{file.oid}%22", about)
        return contents(file, path, request, {"X-Repo-Commit": commit.id})
    if hub.xet:
        token = f"{hub.url}/api/{kind or 'models'}/{id}/xet-read-token/{commit.id}"
        about["X-Xet-Hash"] = file.xet_hash
        about["Link"] = f'<{token}>; rel="xet-auth", <{hub.cas_url}/v1/reconstructions/{file.xet_hash}>; rel="xet-reconstruction-info"'
    with hub.lock:
        hub.stored[file.sha256] = file.data
    name = quote(f'inline; filename="{path.rsplit("/", 1)[-1]}";', safe="")
    return redirect(302, f"{hub.store_url}/cdn/{file.sha256}?response-content-disposition={name}&Expires=4102444800&Signature={SECRET}", about)


def resolve_cache(hub, request, kind, id, revision, path):
    repo = find(hub, request, singular(kind), id)
    may_read(hub, request, repo)
    commit = find_commit(repo, revision)
    if path not in commit.tree:
        raise Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.id})
    return contents(commit.tree[path], path, request, {"X-Repo-Commit": commit.id})


def contents(file, path, request, headers):
    text = "text/plain; charset=utf-8"
    return file_reply(file.data, request, headers | {"ETag": f'"{file.oid}"', "Content-Type": text, "Content-Disposition": "inline"})


def from_store(hub, request, sha256):
    if request.query.get("Signature") != [SECRET]:
        raise Refused(403, "Access denied")
    if sha256 not in hub.stored:
        raise Refused(404, "No such key")
    return file_reply(hub.stored[sha256], request, {"ETag": f'"{sha256}"'})


def lfs_batch(hub, request, kind, id):
    """How large files are to be uploaded: through Xet where client and hub can, else to an address each ("basic")."""
    find(hub, request, singular(kind or "models"), id, write=True)
    asked = request.json()
    transfer = hub.lfs_transfer if hub.lfs_transfer in asked.get("transfers", ["basic"]) else "basic"
    rows = []
    for wanted in asked["objects"]:
        row = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.large_files:
            address = f"{hub.store_url}/lfs/{wanted['oid']}?Signature={SECRET}"
            row |= {"authenticated": True, "actions": {"upload": {"href": address, "header": {}}}}
        rows.append(row)
    return json_reply({"transfer": transfer, "objects": rows})


def lfs_upload(hub, request, sha256):
    if request.query.get("Signature") != [SECRET]:
        raise Refused(403, "Access denied")
    file = File(request.body, lfs=True)
    if file.sha256 != sha256:
        raise Refused(400, "the bytes are not those that were announced")
    with hub.lock:
        hub.large_files[sha256] = file
    return Reply(200)


def lfs_verify(hub, request, kind, id):
    authenticated(hub, request)
    return json_reply({})


ROUTES = [
    ("GET HEAD", rf"{PREFIX}{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
    ("GET HEAD", rf"/api/resolve-cache/(?P<kind>models|datasets)/{ID}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)", resolve_cache),
    ("POST", rf"{PREFIX}{ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"{PREFIX}{ID}\.git/info/lfs/verify", lfs_verify),
]
STORE_ROUTES = [
    ("GET HEAD", r"/cdn/(?P<sha256>[0-9a-f]{64})", from_store),
    ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", lfs_upload),
]
