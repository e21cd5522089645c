"""The mock hub's routes below /api: what repositories there are, what is in them, and commits to them.

Names, codes and words of refusals are the real hub's (huggingface_hub's and hf-hub's sources say which of them clients look at).
"""

import base64
import json
from urllib.parse import parse_qs, quote

from mock_http import Refused, json_reply, redirect, unix_time
from mock_repos import KINDS, LFS_FROM, File, Repo

ID = r"(?P<id>[^/]+(?:/[^/]+)??)"
REPO = rf"/api/(?P<kind>models|datasets)/{ID}"
REVISION = r"/(?P<revision>[^/]+)"
NO_LOGIN = "Invalid username or password."


def singular(kind):
    return next((one for one, many in KINDS.items() if many == kind), kind)


def authenticated(hub, request):
    if request.token == "none":
        raise Refused(401, NO_LOGIN)


def find(hub, request, kind, id, write=False):
    """The repository, if the token may see it (and write to it). Another case of its name, or a former name, leads to a redirect."""
    repo = hub.repos.get((kind, id))
    if not repo:
        other = hub.aliases.get((kind, id)) or next((i for k, i in hub.repos if k == kind and i.lower() == id.lower()), None)
        if other:
            answer = Refused(307, "moved")
            answer.reply = redirect(307, request.target.replace(f"/{quote(id)}", f"/{quote(other)}", 1))
            raise answer
    if not repo or repo.private and request.token not in ("right", "read"):
        if request.token == "none":
            raise Refused(401, NO_LOGIN, "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")
    if write:
        authenticated(hub, request)
        if request.token != "right" or not repo.writable:
            raise Refused(403, f"Forbidden: you don't have write access to the {kind} {id}.")
    return repo


def find_commit(repo, revision):
    commit = repo.at(revision)
    if not commit:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def whoami(hub, request):
    authenticated(hub, request)
    account = "stranger" if request.token == "stranger" else hub.user
    orgs = [] if request.token == "stranger" else [{"type": "org", "name": name, "fullname": name} for name in hub.orgs]
    role = "write" if request.token == "right" else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return json_reply({"type": "user", "id": "0", "name": account, "fullname": account, "isPro": False, "orgs": orgs, "auth": token})


def info(hub, request, kind, id, revision=None):
    repo = find(hub, request, singular(kind), id)
    commit = find_commit(repo, revision) if revision else repo.at("main")
    return json_reply(repo.json(commit, request.flag("blobs"), request.query.get("expand", ())))


def tree(hub, request, kind, id, revision, path=None):
    repo = find(hub, request, singular(kind), id)
    commit = find_commit(repo, revision)
    path = (path or "").strip("/")
    if path and (repo.entry(path, commit) or {}).get("type") != "directory":
        raise Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound", {"X-Repo-Commit": commit.id})
    expand = request.flag("expand")
    return paged(hub, request, [repo.entry(p, commit, expand, hub.xet) for p in repo.tree(path, commit, request.flag("recursive"))])


def commits(hub, request, kind, id, revision):
    repo = find(hub, request, singular(kind), id)
    return paged(hub, request, [commit.json() for commit in repo.log(find_commit(repo, revision))])


def paged(hub, request, rows):
    """A page of the rows, with the address of the next in the header Link."""
    query = request.query
    start, size = int(query.get("cursor", ["0"])[0]), int(query.get("limit", [hub.page_size])[0])
    headers = {}
    if start + size < len(rows):
        kept = "".join(f"{name}={quote(v)}&" for name, values in query.items() if name not in ("cursor",) for v in values)
        headers["Link"] = f'<{hub.url}{request.target.split("?")[0]}?{kept}cursor={start + size}>; rel="next"'
    return json_reply(rows[start : start + size], headers=headers)


def paths_info(hub, request, kind, id, revision):
    repo = find(hub, request, singular(kind), id)
    commit = find_commit(repo, revision)
    if "json" in request.headers.get("content-type", ""):
        asked = request.json()
        paths, expand = asked.get("paths", []), asked.get("expand", False)
    else:
        form = parse_qs(request.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
    rows = [repo.entry(path.strip("/"), commit, expand, hub.xet) for path in paths]
    return json_reply([row for row in rows if row])


def refs(hub, request, kind, id):
    return json_reply(find(hub, request, singular(kind), id).refs(request.flag("include_prs")))


def create(hub, request):
    """Makes a repository. That it exists already is 409 always; clients that do not mind (exist_ok) look at the status."""
    authenticated(hub, request)
    asked = request.json()
    kind, owner = asked.get("type") or "model", asked.get("organization") or hub.user
    id = f"{owner}/{asked['name']}"
    address = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{id}"
    if kind not in KINDS:
        raise Refused(400, f"this hub has no repositories of the type {kind}")
    if request.token != "right" or owner not in (hub.user, *hub.orgs):
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    if (kind, id) in hub.repos:
        return json_reply({"error": f"You already created this {kind} repo", "url": address}, 409)
    repo = Repo(kind, id, private=asked.get("private", False) or asked.get("visibility") == "private")
    attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in repo.lfs).encode()
    repo.commit({".gitattributes": File(attributes)}, "initial commit", hub.user)
    hub.repos[kind, id] = repo
    return json_reply({"url": address, "name": id, "id": "0"})


def delete(hub, request):
    asked = request.json()
    kind, id = asked.get("type") or "model", f"{asked.get('organization') or hub.user}/{asked['name']}"
    find(hub, request, kind, id, write=True)
    del hub.repos[kind, id]
    return json_reply({})


def settings(hub, request, kind, id):
    repo, asked = find(hub, request, singular(kind), id, write=True), request.json()
    if "private" in asked or "visibility" in asked:
        repo.private = asked.get("private", False) or asked.get("visibility") == "private"
    if "gated" in asked:
        repo.gated = asked["gated"]
    return json_reply({"private": repo.private, "gated": repo.gated})


def branch(hub, request, kind, id, branch):
    repo = find(hub, request, singular(kind), id, write=True)
    if request.method == "DELETE":
        if not repo.branches.pop(branch, None):
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return json_reply({})
    if branch in repo.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{branch}")
    asked = request.json() if request.body else {}
    repo.branches[branch] = find_commit(repo, asked.get("startingPoint") or "main").id
    return json_reply({}, 201)


def tag(hub, request, kind, id, revision):
    repo = find(hub, request, singular(kind), id, write=True)
    if request.method == "DELETE":
        if not repo.tags.pop(revision, None):
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return json_reply({})
    name = request.json()["tag"]
    if name in repo.tags:
        raise Refused(409, f"Tag reference exists already: refs/tags/{name}")
    repo.tags[name] = find_commit(repo, revision).id
    return json_reply({})


def preupload(hub, request, kind, id, revision):
    """Which files go to large storage. Sizes and names decide; the real hub also looks at the sample."""
    repo = find(hub, request, singular(kind), id, write=not request.flag("create_pr"))
    commit = find_commit(repo, revision)
    rows = []
    for file in request.json()["files"]:
        known = commit.tree.get(file["path"])
        large = repo.is_lfs(file["path"], file["size"])
        row = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        rows.append(row | {"oid": known and (known.sha256 if large else known.oid)})
    return json_reply({"files": rows, "commitOid": commit.id})


def xet_token(hub, request, kind, id, access, revision):
    repo = find(hub, request, singular(kind), id, write=access == "write" and not request.flag("create_pr"))
    may_read(hub, request, repo)
    token, expires = hub.new_xet_token(access == "write"), unix_time() + hub.xet_token_seconds
    headers = {"X-Xet-Cas-Url": hub.cas_url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return json_reply({"casUrl": hub.cas_url, "accessToken": token, "exp": expires}, headers=headers)


def may_read(hub, request, repo):
    """Files of a gated repository are for those who were let in; everybody sees what files there are."""
    if repo.gated and request.secret not in repo.granted:
        restricted = f"Access to {repo.kind} {repo.id} is restricted"
        if request.token == "none":
            raise Refused(401, restricted + ". You must have access to it and be authenticated to access it. Please log in.", "GatedRepo")
        page = f"{hub.url}/{repo.prefix}{repo.id}"
        raise Refused(403, f"{restricted} and you are not in the authorized list. Visit {page} to ask for access.", "GatedRepo")


def commit(hub, request, kind, id, revision):
    """Takes a commit: lines of JSON, first the header, then one operation each."""
    pull_request = request.flag("create_pr") and "create_pr" in request.query
    repo = find(hub, request, singular(kind), id, write=not pull_request)
    authenticated(hub, request)
    base = find_commit(repo, revision)
    try:
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header, operations = lines[0]["value"], [(line["key"], line["value"]) for line in lines[1:]]
    except (ValueError, KeyError, IndexError):
        raise Refused(400, "the commit is not lines of JSON that start with a header") from None
    parent = header.get("parentCommit")
    if parent and parent != base.id and not pull_request:
        raise Refused(hub.conflict_status, "A commit has happened since. Please refresh and try again.")
    tree = dict(base.tree)
    for key, value in operations:
        apply(hub, repo, tree, key, value)
    if not pull_request and revision not in repo.branches and revision not in repo.pull_requests:
        raise Refused(400, f"commits go to branches, and {revision} is none")
    branch = f"refs/pr/{len(repo.pull_requests) + 1}" if pull_request else revision
    done = tuple((key, value["path"]) for key, value in operations)
    new = repo.commit(tree, header["summary"], hub.user, header.get("description", ""), branch, done, base.id)
    page = f"{hub.url}/{repo.prefix}{repo.id}"
    answer = {"success": True, "commitOid": new.id, "commitUrl": f"{page}/commit/{new.id}", "hookOutput": ""}
    if pull_request:
        answer["pullRequestUrl"] = f"{page}/discussions/{len(repo.pull_requests)}"
    return json_reply(answer)


def apply(hub, repo, tree, key, value):
    path = value["path"]
    if key == "file":
        data = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
        if len(data) > LFS_FROM:
            raise Refused(400, f"Your push was rejected because it contains files larger than 10 MiB: {path}")
        tree[path] = File(data)
    elif key == "lfsFile":
        file = hub.large_files.get(value["oid"])
        if not file or file.size != value.get("size", file.size):
            raise Refused(400, f"Your push was rejected because an LFS pointer pointed to a file that does not exist. Offending file: - {path}")
        tree[path] = file
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [p for p in tree if p == path or key == "deletedFolder" and p.startswith(folder)]
        if not gone:
            raise Refused(404, f"A file with the name {path} does not exist", "EntryNotFound")
        for p in gone:
            del tree[p]
    else:
        raise Refused(400, f"this hub knows no operation {key}")


def validate_yaml(hub, request):
    return json_reply({"errors": [], "warnings": []})


ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("DELETE", r"/api/repos/delete", delete),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", rf"{REPO}/tree{REVISION}(?:/(?P<path>.+))?", tree),
    ("GET", rf"{REPO}/commits{REVISION}", commits),
    ("POST", rf"{REPO}/paths-info{REVISION}", paths_info),
    ("GET", rf"{REPO}/refs", refs),
    ("POST", rf"{REPO}/preupload{REVISION}", preupload),
    ("POST", rf"{REPO}/commit{REVISION}", commit),
    ("GET", rf"{REPO}/xet-(?P<access>read|write)-token{REVISION}", xet_token),
    ("POST DELETE", rf"{REPO}/branch/(?P<branch>[^/]+)", branch),
    ("POST DELETE", rf"{REPO}/tag{REVISION}", tag),
    ("PUT", rf"{REPO}/settings", settings),
    ("GET HEAD", rf"{REPO}(?:/revision{REVISION})?", info),
]
