"""The mock hub's storage as hf-xet 1.8.0 speaks to it (xet-client's remote_client.rs): uploads of xorbs and shards, downloads by chunk.

An upload is taken apart and put together again: a shard is refused unless its xorbs have arrived, have the chunks it names, and these
give files of the size and SHA-256 it tells. Only then may a commit name these files. What is not checked are the BLAKE3 hashes that
name chunks, xorbs and files (Python's library has no BLAKE3); that they fit together is.

On download each file is one xorb of its own with plain chunks, whatever it was uploaded in.
"""

import hashlib
import json
import re

from mock_files import SECRET
from mock_http import Refused, Reply, file_reply, json_reply
from mock_repos import File
from mock_xet_formats import Malformed, pack_chunk, unpack_chunk, unpack_shard, xorb_chunks

CHUNK = 64 << 10  # plain bytes of a chunk on download
KEY = r"default/(?P<hash>[0-9a-f]{64})"


def may(hub, request, write):
    access = hub.xet_access(request.secret)
    if access is None:
        raise Refused(401, "the token is unknown or expired")
    if write and not access:
        raise Refused(403, "the token is for reading")


def take_xorb(hub, hash, body):
    try:
        chunks = xorb_chunks(body)
    except Malformed as problem:
        raise Refused(400, str(problem)) from problem
    with hub.lock:
        new = hash not in hub.xorbs
        hub.xorbs[hash] = chunks
    return new


def upload_xorb(hub, request, hash):
    may(hub, request, write=True)
    return json_reply({"was_inserted": take_xorb(hub, hash, request.body)})


def grant_xorb(hub, request, hash):
    """Offers an address of the store to upload to, if the hub is told to; else clients upload to the route above."""
    may(hub, request, write=True)
    if not hub.xorb_grants:
        raise Refused(404, "no grants here")
    if hash in hub.xorbs:
        return json_reply({})
    id = f"grant-{hub.next_number()}"
    return json_reply({"id": id, "method": "PUT", "url": f"{hub.store_url}/granted/{id}?Signature={SECRET}", "headers": {}}, 201)


def upload_granted(hub, request, grant):
    if request.query.get("Signature") != [SECRET] or request.secret:
        raise Refused(403, "Access denied")
    hub.granted_uploads[grant] = request.body
    return Reply(200)


def commit_grant(hub, request, hash, grant):
    may(hub, request, write=True)
    if grant not in hub.granted_uploads:
        raise Refused(404, "nothing was uploaded for this grant")
    take_xorb(hub, hash, hub.granted_uploads.pop(grant))
    return json_reply({})


def upload_shard(hub, request, version):
    may(hub, request, write=True)
    if version == "2" and hub.shard_version < 2:
        raise Refused(404, "no such route")
    try:
        files = [(file, assemble(hub, file)) for file in unpack_shard(request.body)]
    except Malformed as problem:
        raise Refused(400, str(problem)) from problem
    with hub.lock:
        for file, data in files:
            stored = File(data, lfs=True, known_xet_hash=file.hash)
            hub.large_files[stored.sha256] = stored
            hub.xet_files[file.hash] = data
    if version == "1":
        return json_reply({"result": 1})
    events = [{"type": "validating", "verified": 1, "total": 1}, {"type": "committing", "stage": "uploading"}, {"type": "result"}]
    return Reply(200, "".join(json.dumps(event) + "\n" for event in events).encode(), {"Content-Type": "application/x-ndjson"})


def assemble(hub, file):
    """The bytes of a file of a shard."""
    pieces = []
    for segment in file.segments:
        chunks = hub.xorbs.get(segment.xorb)
        if chunks is None:
            raise Malformed(f"xorb {segment.xorb} has not been uploaded")
        if not segment.first < segment.last <= len(chunks):
            raise Malformed(f"xorb {segment.xorb} has no chunks {segment.first} to {segment.last}")
        piece = b"".join(unpack_chunk(chunk) for chunk in chunks[segment.first : segment.last])
        if len(piece) != segment.size:
            raise Malformed(f"a segment of {segment.size} bytes has {len(piece)}")
        pieces.append(piece)
    data = b"".join(pieces)
    if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
        raise Malformed(f"the chunks of file {file.hash} do not give its SHA-256")
    return data


def dedup(hub, request, hash):
    may(hub, request, write=False)
    raise Refused(404, "no shard has this chunk")


def find_file(hub, hash):
    """A file by its Xet hash: an upload, or one that a test put in."""
    if hash not in hub.xet_files:
        with hub.lock:
            files = (file for repo in hub.repos.values() for commit in repo.history.values() for file in commit.tree.values())
            found = next((file for file in files if file.lfs and file.xet_hash == hash), None)
            if not found:
                raise Refused(404, "no such file")
            hub.xet_files[hash] = found.data
    return hub.xet_files[hash]


def reconstruction(hub, request, version, hash):
    """Which chunks make up the file or the range of it, and where they are."""
    may(hub, request, write=False)
    size = len(find_file(hub, hash))
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.range or f"bytes=0-{max(size - 1, 0)}")
    start, stop = int(wanted[1]), min(int(wanted[2]) + 1, size)
    if start >= stop:
        raise Refused(416, "the range is behind the end of the file")
    first, last = start // CHUNK, -(-stop // CHUNK)
    chunks = {"start": first, "end": last}
    bytes = {"start": first * (CHUNK + 8), "end": min(last * CHUNK, size) + 8 * last - 1}
    url = f"{hub.store_url}/xorb/{hash}?Signature={SECRET}"
    answer = {"offset_into_first_range": start - first * CHUNK}
    answer["terms"] = [{"hash": hash, "unpacked_length": min(last * CHUNK, size) - first * CHUNK, "range": chunks}]
    if version == "2":
        answer["xorbs"] = {hash: [{"url": url, "ranges": [{"chunks": chunks, "bytes": bytes}]}]}
    else:
        answer["fetch_info"] = {hash: [{"range": chunks, "url": url, "url_range": bytes}]}
    return json_reply(answer)


def stored_xorb(hub, request, hash):
    if request.query.get("Signature") != [SECRET]:
        raise Refused(403, "Access denied")
    data = find_file(hub, hash)
    return file_reply(b"".join(pack_chunk(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)), request)


def telemetry(hub, request):
    return json_reply({})


STORE_ROUTES = [
    ("POST", rf"/v1/xorbs/{KEY}", upload_xorb),
    ("POST", rf"/v1/xorb-grants/{KEY}", grant_xorb),
    ("PUT", r"/granted/(?P<grant>[^/]+)", upload_granted),
    ("POST", rf"/v1/xorb-commits/{KEY}/grant/(?P<grant>[^/]+)", commit_grant),
    ("POST", r"/v(?P<version>[12])/shards", upload_shard),
    ("GET", r"/v1/chunks/[^/]+/(?P<hash>[0-9a-f]{64})", dedup),
    ("GET", r"/v(?P<version>[12])/reconstructions/(?P<hash>[0-9a-f]{64})", reconstruction),
    ("GET", r"/xorb/(?P<hash>[0-9a-f]{64})", stored_xorb),
    ("POST", r"/v1/telemetry", telemetry),
]
