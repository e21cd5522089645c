"""The mock hub's large-file uploads: bytes as hf-xet 1.8.0 sent them are understood, and what does not fit together is refused."""

import base64
import hashlib
import json
import random
import struct

import pytest
from mock_xet_formats import Malformed, Segment, ShardFile, lz4_frame, pack_chunk, pack_shard, unpack_chunk, unpack_shard, ungrouped, xorb_chunks
from test_mock_hub import ask, asked, push

# What hf-xet 1.8.0 sent for the two files (the second with HF_XET_XORB_COMPRESSION_POLICY=bg4-lz4), and the first's shard.
TEXT = b"abcd" * 5 + b"the lazy dog and " * 20 + b"the end"
TEXT_HASH = "1112a294a1095676315399f0d2a072c8d069b0ec3652e73d3ac088900cd90b93"
TEXT_XORB = base64.b85decode("05kvq0dD~S1R_lsU_gQ;0000?VPa!s1OWd6bZBKDY+-tNAY^Z6AYpD~AQ1rnGGJ(BAZ2c300000")
TEXT_SHARD = base64.b85decode(
    "NJdg+aBodzbYVncbYTEhX=g=hdx2MjrM=l)&CyD!0ssI2000000000000000f;JfU3a+SV(sEu*cmNczBA>%L6Cw-UoUo7uUbplU0002M0RR910000000000c2)_Yl%f(5"
    "$a0|4@R?IFJ?Bz3?67IjlMC4lkchxK00000Zvg-R000000RR91j=QmPM*)jLZVpR=&dmXyzFZE1ZvMjW?FA+Lq~cTn00000000000000000000)OMgY0r0zQY@y}(&-6BW"
    "a1?`x)}Rjb&@lFzl$X7I00000000000000000000|NsC0|NsC0|NsC0|NsC0|NsC0|NsC0|NsC0|NsC000000000000000000000c2)_Yl%f(5$a0|4@R?IFJ?Bz3?67Ij"
    "lMC4lkchxK000000RR91Zvg-R00000c2)_Yl%f(5$a0|4@R?IFJ?Bz3?67IjlMC4lkchxK00000Zvg-R0000000000|NsC0|NsC0|NsC0|NsC0|NsC0|NsC0|NsC0|NsC0"
    "00000000000000000000"
)
FLOATS = b"".join(struct.pack("<f", 1 + i / 64) for i in range(64)) + b"xyz"
FLOATS_XORB = base64.b85decode(
    "0BQgL0s{d61R_lsU_gRf0000V0096jA9z3jEdMqDd4Ph1hKP!cj*ya+mYABHo}i+nrl_i{uCTJSwz#^yzQDr7#>mRd&d}1-*4WzI-r(Zo=IH9|?(p*T_W1hz{(3(@0stjoKR-V|KR*Bf000"
)
PLAIN = random.Random(1).randbytes(150_000)
PLAIN_XORB = pack_chunk(PLAIN[:70_000]) + pack_chunk(PLAIN[70_000:])
ONE, TWO = "1" * 64, "2" * 64


def storage(hub, access="write"):
    hub.repos or hub.add_repo("model", "org/name", {"config.json": b"{}"})
    return asked(hub, f"/api/models/org/name/xet-{access}-token/main")["accessToken"]


def store(hub, path, body=b"", token=None, **options):
    return ask(hub, hub.cas_url + path, body, token=token or storage(hub), **options)


def upload(hub, hash, data, xorb, chunks, version=2):
    """The file of one xorb; the answer to its shard."""
    assert store(hub, f"/v1/xorbs/default/{hash}", xorb)[0] == 200
    file = ShardFile(TWO, [Segment(hash, len(data), 0, chunks)], hashlib.sha256(data).hexdigest())
    return store(hub, f"/v{version}/shards", pack_shard([file]))


def lfs_file(data, path="new.safetensors"):
    return "lfsFile", {"path": path, "algo": "sha256", "oid": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_formats():
    assert [unpack_chunk(chunk) for chunk in xorb_chunks(TEXT_XORB)] == [TEXT] and xorb_chunks(TEXT_XORB)[0][0] == 1
    assert [unpack_chunk(chunk) for chunk in xorb_chunks(FLOATS_XORB)] == [FLOATS] and xorb_chunks(FLOATS_XORB)[0][0] == 2
    assert b"".join(map(unpack_chunk, xorb_chunks(PLAIN_XORB + b"XETBLOB and a footer"))) == PLAIN
    (file,) = unpack_shard(TEXT_SHARD)
    assert (file.sha256, file.size) == (hashlib.sha256(TEXT).hexdigest(), len(TEXT)) and file.segments == [Segment(TEXT_HASH, len(TEXT), 0, 1)]
    assert unpack_shard(pack_shard([file, file])) == [file, file]
    assert ungrouped(b"abcdefg") == b"acegbdf"


@pytest.mark.parametrize("broken", [b"", b"\1" + PLAIN_XORB[1:], PLAIN_XORB[:-1], PLAIN_XORB[:4], PLAIN_XORB[:4] + b"\7" + PLAIN_XORB[5:]])
def test_broken_xorbs(broken):
    with pytest.raises(Malformed):
        xorb_chunks(broken)


def test_broken_shards_and_frames():
    for broken in (b"something else" * 10, TEXT_SHARD[:100]):
        with pytest.raises(Malformed):
            unpack_shard(broken)
    for broken in (b"no frame", TEXT_XORB[8:20]):
        with pytest.raises(Malformed):
            lz4_frame(broken)


@pytest.mark.parametrize("version", [1, 2])
def test_upload(hub, version):
    token = storage(hub)
    assert store(hub, f"/v1/xorb-grants/default/{TEXT_HASH}", b"{}")[0] == 404
    assert json.loads(store(hub, f"/v1/xorbs/default/{TEXT_HASH}", TEXT_XORB, token)[2]) == {"was_inserted": True}
    assert json.loads(store(hub, f"/v1/xorbs/default/{TEXT_HASH}", TEXT_XORB, token)[2]) == {"was_inserted": False}
    assert ask(hub, f"{hub.cas_url}/v1/chunks/default/{ONE}", token=token)[0] == 404
    assert push(hub, lfs_file(TEXT))[0] == 400  # the shard has not come yet
    hub.shard_version = version
    assert store(hub, "/v2/shards", TEXT_SHARD)[0] == (200 if version == 2 else 404)
    if version == 1:
        assert json.loads(store(hub, "/v1/shards", TEXT_SHARD)[2]) == {"result": 1}
    assert push(hub, lfs_file(TEXT))[0] == 200
    assert hub.files("org/name") == {"config.json": b"{}", "new.safetensors": TEXT}
    assert store(hub, "/v1/telemetry")[0] == 200 and token not in repr(hub.log)


def test_stream_of_a_shard_ends_with_its_result(hub):
    status, _, body = upload(hub, ONE, PLAIN, PLAIN_XORB, 2)
    assert status == 200 and [json.loads(line)["type"] for line in body.splitlines()] == ["validating", "committing", "result"]


def test_upload_to_granted_addresses(hub):
    hub.xorb_grants = True
    status, _, body = store(hub, f"/v1/xorb-grants/default/{TEXT_HASH}", b"{}")
    grant = json.loads(body)
    commit = f"/v1/xorb-commits/default/{TEXT_HASH}/grant/{grant['id']}"
    assert status == 201 and store(hub, commit)[0] == 404
    assert ask(hub, grant["url"], TEXT_XORB, method=grant["method"], token=None)[0] == 200
    assert store(hub, commit)[0] == 200 and store(hub, "/v2/shards", TEXT_SHARD)[0] == 200
    assert store(hub, f"/v1/xorb-grants/default/{TEXT_HASH}", b"{}")[0] == 200


def test_shards_that_are_refused(hub):
    def refusal(**changes):
        file = ShardFile(TWO, [Segment(changes.get("xorb", ONE), changes.get("size", len(PLAIN)), 0, changes.get("last", 2))])
        file.sha256 = changes.get("sha256", "")
        status, _, body = store(hub, "/v2/shards", pack_shard([file]))
        return status, json.loads(body)["error"].split()[-1] if status != 200 else ""

    assert refusal() == (400, "uploaded")
    store(hub, f"/v1/xorbs/default/{ONE}", PLAIN_XORB)
    assert refusal() == (200, "")
    assert refusal(last=3) == (400, "3")
    assert refusal(size=5) == (400, "150000")
    assert refusal(sha256=TWO) == (400, "SHA-256")
    assert store(hub, f"/v1/xorbs/default/{ONE}", b"nonsense")[0] == 400


def test_tokens_of_the_storage(hub):
    read, address = storage(hub, "read"), f"/v1/xorbs/default/{ONE}"
    assert store(hub, address, PLAIN_XORB, read)[0] == 403
    assert store(hub, address, PLAIN_XORB, hub.token)[0] == 401
    hub.xet_token_seconds = -1
    assert store(hub, address, PLAIN_XORB)[0] == 401
    _, headers, body = ask(hub, "/api/models/org/name/xet-write-token/main")
    assert headers["X-Xet-Cas-Url"] == json.loads(body)["casUrl"] == hub.cas_url and int(headers["X-Xet-Token-Expiration"]) == json.loads(body)["exp"]
    assert ask(hub, "/api/models/org/name/xet-write-token/main", token=hub.read_token)[0] == 403
    assert ask(hub, "/api/models/org/name/xet-read-token/main", token=None)[0] == 200


def test_the_kth_xorb_fails(hub):
    hub.fail("POST /v1/xorbs/", status=503, skip=1)
    assert [store(hub, f"/v1/xorbs/default/{hash}", PLAIN_XORB)[0] for hash in (ONE, TWO, TWO)] == [200, 503, 200]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("start, stop", [(0, 150_000), (70_000, 70_001), (65_536, 131_072), (149_999, 200_000)])
def test_download_by_chunks(hub, version, start, stop):
    upload(hub, ONE, PLAIN, PLAIN_XORB, 2)
    token = storage(hub, "read")
    status, _, body = ask(hub, f"{hub.cas_url}/v{version}/reconstructions/{TWO}", token=token, Range=f"bytes={start}-{stop - 1}")
    plan = json.loads(body)
    (term,) = plan["terms"]
    fetch = plan["xorbs"][term["hash"]][0] if version == 2 else plan["fetch_info"][term["hash"]][0]
    bytes = fetch["ranges"][0]["bytes"] if version == 2 else fetch["url_range"]
    status, _, xorb = ask(hub, fetch["url"], token=None, Range=f"bytes={bytes['start']}-{bytes['end']}")
    data = b"".join(map(unpack_chunk, xorb_chunks(xorb)))
    assert status == 206 and len(data) == term["unpacked_length"]
    assert data[plan["offset_into_first_range"] :][: stop - start] == PLAIN[start:stop]


def test_download_by_chunks_of_what_is_not_there(hub):
    hub.add_repo("model", "org/name", {"m.safetensors": PLAIN})
    hash = asked(hub, "/api/models/org/name/tree/main")[0]["xetHash"]
    token = storage(hub, "read")
    assert ask(hub, f"{hub.cas_url}/v2/reconstructions/{hash}", token=token)[0] == 200
    assert ask(hub, f"{hub.cas_url}/v2/reconstructions/{hash}", token=token, Range="bytes=150000-150001")[0] == 416
    assert ask(hub, f"{hub.cas_url}/v2/reconstructions/{ONE}", token=token)[0] == 404


def test_lfs_batch(hub):
    storage(hub)
    data = {"operation": "upload", "transfers": ["basic", "multipart", "xet"], "objects": [{"oid": lfs_file(PLAIN)[1]["oid"], "size": 150_000}]}
    address = "/org/name.git/info/lfs/objects/batch"
    assert asked(hub, address, data)["transfer"] == "xet"
    assert ask(hub, address, data, token=hub.read_token)[0] == 403
    hub.lfs_transfer = "basic"
    answer = asked(hub, address, data)
    upload = answer["objects"][0]["actions"]["upload"]["href"]
    assert answer["transfer"] == "basic" and ask(hub, upload, b"other bytes", method="PUT", token=None)[0] == 400
    assert ask(hub, upload, PLAIN, method="PUT", token=None)[0] == 200 and push(hub, lfs_file(PLAIN))[0] == 200
    assert "actions" not in asked(hub, address, data)["objects"][0] and hub.files("org/name")["new.safetensors"] == PLAIN
