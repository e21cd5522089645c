"""`--model org/name`, data sets, Parquet and `lquant upload`, against a hub on this machine."""

import hashlib
import io
import json
import random
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mock_hub import MockHub

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from support import LQUANT, TINY, random_model, run, text_rows, tree  # noqa: E402

TOKEN = MockHub.token
FRONT = "---\nlicense: apache-2.0\nlanguage:\n- en\n- de\ntags:\n- chat\n---\n\n# A model\n"


@pytest.fixture(scope="module")
def tiny():
    return {path.name: path.read_bytes() for path in TINY.iterdir()}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("q") / "small"
    run("convert", "--model", TINY, "-q", "--mlx-path", folder)
    return folder


@pytest.fixture
def call(hub, tmp_path):
    """Runs lquant as a user of the mock hub, with a cache of its own; nothing that it prints may show the token."""

    def call(*arguments, code=0, token=TOKEN, **environment):
        done = run(*arguments, code=code, environment=hub.env(tmp_path / "home", token) | environment, cwd=tmp_path)
        assert TOKEN not in done.stdout + done.stderr and "secret" not in done.stdout + done.stderr
        return done

    return call


def sentence(done):
    """The one line of stderr that says what is wrong."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("lquant: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


# Models


def test_a_model_by_its_name(hub, call, tiny, tmp_path):
    extra = {"pytorch_model.bin": b"x" * 1000, "onnx/model.onnx": b"y" * 1000, "README.md": FRONT.encode()}
    hub.add_repo("model", "org/tiny", tiny | extra)
    done = call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    # The original is named as it was typed, not by its place in the cache.
    assert "lquant perplexity --model out --teacher org/tiny --data-path text.txt\n" in done.stderr
    reference = tmp_path / "reference"
    run("convert", "--model", TINY, "-q", "--mlx-path", reference)
    assert tree(tmp_path / "out")["model.safetensors"] == tree(reference)["model.safetensors"]
    assert not hub.requests("(onnx|pytorch_model)")
    source = json.loads((tmp_path / "out/lquant.json").read_text())["source"]
    commit = hub.commits("org/tiny")[0].id
    assert source["repo"] == "org/tiny" and source["revision"] == commit and source["name"] == "tiny"
    assert source["card"] == FRONT.split("\n\n#")[0] + "\n"

    # What is there is not fetched again, and needs no hub at all.
    hub.clear_log()
    call("generate", "--model", "org/tiny", "--prompt", "The river", "--max-tokens", 2)
    assert not hub.requests("GET .*(resolve|cdn)")
    call("generate", "--model", "org/tiny", "--prompt", "The river", "--max-tokens", 2, HF_HUB_OFFLINE="1")
    away = call("generate", "--model", "org/tiny", "--prompt", "The river", "--max-tokens", 2, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached; using what the cache has" in away.stderr


def test_files_of_sensitivities_have_the_name_that_the_peer_gives_them(hub, call, tmp_path):
    """org/name, not the folder of the cache where it lies."""
    hub.add_repo("model", "org/small", {path.name: path.read_bytes() for path in random_model(tmp_path / "model").iterdir()})
    rows = text_rows(tmp_path / "rows.jsonl", count=9, words=8)
    call("dynamic_quant", "--model", "org/small", "--data-path", rows, "--sequence-length", 16, "--plan-only", "plan.json")
    assert {p.name for p in tmp_path.glob("*sensitivities*")} == {"org_small_sensitivities.json", "org_small_sensitivities.lquant.json"}


def test_the_cache_is_the_one_of_the_python_client(hub, call, tiny, tmp_path):
    hub.add_repo("model", "org/tiny", tiny)
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    home = tmp_path / "home/hub/models--org--tiny"
    commit = hub.commits("org/tiny")[0].id
    assert (home / "refs/main").read_text() == commit
    link = home / "snapshots" / commit / "model.safetensors"
    assert link.is_symlink() and link.resolve().parent == (home / "blobs").resolve() and link.read_bytes() == tiny["model.safetensors"]
    assert len(link.resolve().name) == 64, "a large file's blob is named by its SHA-256"
    assert len((home / "snapshots" / commit / "config.json").resolve().name) == 40, "a small file's by git's SHA-1"


def test_a_revision(hub, call, tiny):
    hub.add_repo("model", "org/tiny", tiny)
    broken = json.dumps(json.loads(tiny["config.json"]) | {"model_type": "other"}).encode()
    hub.push("org/tiny", {"config.json": broken}, branch="experiment")
    assert "other" in sentence(call("convert", "--model", "org/tiny@experiment", "-q", "--mlx-path", "a", code=1))
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "b")
    assert "org/tiny: has no revision nope" in sentence(call("convert", "--model", "org/tiny@nope", "-q", "--mlx-path", "c", code=1))


@pytest.mark.parametrize("seed", range(3))
def test_a_download_that_breaks_is_continued_where_it_broke(hub, call, tiny, seed, tmp_path):
    hub.add_repo("model", "org/tiny", tiny)
    after = random.Random(seed).randrange(1, len(tiny["model.safetensors"]))
    hub.cut("GET /cdn/", after=after)
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    ranges = [request.range for request in hub.requests("GET /cdn/")]
    assert ranges[0] is None and ranges[1].startswith("bytes=") and 0 < int(ranges[1][6:].split("-")[0]) <= after
    assert tree(tmp_path / "out")["model.safetensors"]


def test_a_run_that_was_killed_is_continued_by_the_next(hub, call, tiny, tmp_path):
    hub.add_repo("model", "org/tiny", tiny)
    # What a killed run leaves: the first part of the bytes.
    blobs = tmp_path / "home/hub/models--org--tiny/blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(tiny["model.safetensors"]).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(tiny["model.safetensors"][:5_000_000])
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    assert [request.range for request in hub.requests("GET /cdn/")] == [f"bytes=5000000-{len(tiny['model.safetensors']) - 1}"]


def test_a_server_without_ranges_costs_time_only(hub, call, tiny):
    hub.add_repo("model", "org/tiny", tiny)
    hub.cut("GET /cdn/", after=100_000)
    hub.ignore_range("/cdn/")
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")


def test_a_busy_hub_is_waited_for(hub, call, tiny):
    hub.add_repo("model", "org/tiny", tiny)
    hub.fail("GET /api/models/org/tiny/revision", 429, retry_after=1)
    hub.fail("HEAD /org/tiny/resolve", 503, retry_after=1)
    hub.fail("GET /org/tiny/resolve/.*/config.json", 429, retry_after=1)
    hub.fail("GET /api/.*/tree", 502)
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    assert len(hub.requests(status=429)) == 2 and len(hub.requests(status=503)) == 1 and len(hub.requests(status=502)) == 1


def test_retry_after_is_heeded(hub, call, tiny):
    hub.add_repo("model", "org/tiny", tiny)
    hub.fail("GET /api/models/org/tiny/revision", 429, retry_after=3)
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")
    first, second = hub.requests("GET /api/models/org/tiny/revision")
    assert second.time - first.time >= 3


def test_bytes_that_are_not_those_announced_are_thrown_away(hub, call, tiny, tmp_path):
    hub.add_repo("model", "org/tiny", tiny)
    hub.corrupt("GET /cdn/")
    said = sentence(call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out", code=1))
    assert "org/tiny: what arrived as model.safetensors hashes to" in said and "give the same command again" in said
    assert not (tmp_path / "out").exists() and not list((tmp_path / "home").rglob("*.incomplete"))
    call("convert", "--model", "org/tiny", "-q", "--mlx-path", "out")


def test_who_may_not_see_it_is_told_how_to_log_in(hub, call, tiny):
    hub.add_repo("model", "org/private", tiny, private=True)
    hub.add_repo("model", "org/gated", tiny, gated="manual")
    arguments = ["-q", "--mlx-path", "out"]
    assert "hf auth login, or HF_TOKEN=" in sentence(call("convert", "--model", "org/private", *arguments, code=1, token=None))
    assert "hf auth login, or HF_TOKEN=" in sentence(call("convert", "--model", "org/gated", *arguments, code=1, token=None))
    assert "accept the model's terms" in sentence(call("convert", "--model", "org/gated", *arguments, code=1))
    assert "there is no such model" in sentence(call("convert", "--model", "org/none", *arguments, code=1))
    said = sentence(call("convert", "--model", "org/private", *arguments, code=1, token="hf_anOldToken"))
    assert "refuses the token" in said and "hf_anOldToken" not in said
    call("convert", "--model", "org/private", *arguments)


def test_without_a_network(call, hub):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = sentence(call("convert", "--model", "org/tiny", "-q", code=1, **away))
    assert "http://127.0.0.1:9 cannot be reached" in said and "give a folder" in said
    assert "HF_HUB_OFFLINE is set" in sentence(call("convert", "--model", "org/tiny", "-q", code=1, HF_HUB_OFFLINE="1"))
    # The default data set of dwq is on the hub.
    said = sentence(call("dwq", "--model", TINY, code=1, **away))
    assert "allenai/tulu-3-sft-mixture" in said and "--data-path self" in said


@pytest.mark.parametrize(
    "files, told",
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "holds no model*.safetensors"),
        ({"model.safetensors": b"x" * 100}, "holds no config.json"),
        ({"m-Q4_0.gguf": b"GGUF", "README.md": b"x"}, "--model org/odd/m-Q4_0.gguf"),
    ],
)
def test_repositories_without_a_model(hub, call, files, told):
    hub.add_repo("model", "org/odd", files)
    assert told in sentence(call("convert", "--model", "org/odd", "-q", code=1))


def test_shards_are_those_of_the_index(hub, call, tiny):
    index = {"metadata": {}, "weight_map": {}}
    hub.add_repo("model", "org/odd", {"config.json": tiny["config.json"], "model.safetensors.index.json": json.dumps(index).encode(),
                                     "model-00001-of-00001.safetensors": tiny["model.safetensors"], "model.safetensors": b"a copy of all",
                                     "tokenizer.json": tiny["tokenizer.json"]})  # fmt: skip
    call("convert", "--model", "org/odd", "-q", "--mlx-path", "out")
    assert not hub.requests("resolve/.*/model.safetensors$")


# Data sets


def parquet(rows, **options):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, **options)
    return out.getvalue()


def texts(count, seed=0):
    words = "the of river stone winter and light walks over old under a house quietly where bread grows with every letter she read".split()
    rng = random.Random(seed)
    return [{"text": f"{i} " + " ".join(rng.choices(words, k=60)), "source": f"part {i // 100}"} for i in range(count)]


def test_rows_of_a_data_set_are_drawn_over_all_of_it(hub, call, tmp_path):
    rows = texts(4000)
    halves = [parquet(half, row_group_size=20, compression="zstd") for half in (rows[:2000], rows[2000:])]
    hub.add_repo("dataset", "org/rows", {f"data/train-0000{i}-of-00002.parquet": half for i, half in enumerate(halves)})
    arguments = ["gptq", "--model", TINY, "--data-path", "org/rows", "--num-samples", 64, "--sequence-length", 64]
    call(*arguments, "--mlx-path", "out")
    kept = list((tmp_path / "home/lquant").rglob("*.jsonl"))
    assert len(kept) == 1
    drawn = [json.loads(line) for line in kept[0].read_text().splitlines()]
    known = {row["text"]: row for row in rows}
    assert len(drawn) == 64 and all(known[row["text"]] == row for row in drawn)
    assert len({row["source"] for row in drawn}) > 15, "of the 40 parts most are met"
    asked = hub.requests("GET /cdn/")
    assert all(request.range for request in asked) and len(asked) <= 64 + 4, "one for each of 64 row groups, two for a long footer"
    # The same rows again, without asking.
    hub.clear_log()
    call(*arguments, "--mlx-path", "again")
    assert not hub.requests("GET .*(resolve|cdn)")
    assert tree(tmp_path / "again")["model.safetensors"] == tree(tmp_path / "out")["model.safetensors"]
    call(*arguments, "--mlx-path", "offline", HF_HUB_OFFLINE="1")


def test_the_default_of_dwq(hub, call, tmp_path):
    hub.add_repo("dataset", "allenai/tulu-3-sft-mixture", {"data/train-00000-of-00001.parquet": parquet(texts(300))})
    call("dwq", "--model", TINY, "--bits", 3, "--num-samples", 8, "--num-valid", 4, "--batch-size", 4, "--max-seq-length", 64, "--mlx-path", "out")
    record = json.loads((tmp_path / "out/lquant.json").read_text())
    assert record["data"]["rows"] == {"train": 8, "valid": 4}


def test_configurations_splits_and_json_lines(hub, call):
    train = parquet(texts(50))
    hub.add_repo("dataset", "org/two", {"a/train.parquet": train, "b/train.parquet": train, "a/test.parquet": parquet(texts(9))})
    hub.add_repo("dataset", "org/script", {"script.py": b"x"})
    hub.push("org/script", {"default/train/0000.parquet": train}, branch="refs/convert/parquet")
    hub.add_repo("dataset", "org/lines", {"train.jsonl": "".join(json.dumps(row) + "\n" for row in texts(40)).encode()})
    hub.add_repo("dataset", "org/images", {"train/1.png": b"x"})
    arguments = ["perplexity", "--model", TINY, "--sequence-length", 32, "--num-samples", 8, "--data-path"]
    assert "several configurations (a, b); name one of them, as in org/two:a" in sentence(call(*arguments, "org/two", code=1))
    assert "has no configuration c; it has a, b" in sentence(call(*arguments, "org/two:c", code=1))
    assert "holds no Parquet or .jsonl file of the split train" in sentence(call(*arguments, "org/images", code=1))
    assert "there is no such data set" in sentence(call(*arguments, "org/none", code=1))
    for data in ("org/two:a/test", "org/lines", "org/script"):
        assert json.loads(call(*arguments, data, "--json").stdout)["tokens"] > 100


def test_a_parquet_file_equals_pyarrow(call, tmp_path):
    rng = random.Random(1)
    chat = [
        {
            "id": i,
            "turns": [{"role": r, "content": "ä" * rng.randrange(9)} for r in ["user", "assistant"] * rng.randrange(4)] if i % 7 else None,
            "tags": [["x", None], [], ["y"]] if i % 3 else [],
            "score": rng.random() if i % 5 else None,
            "kind": rng.choice(["a", "b", None]),
            "flag": bool(i % 2),
            "nested": {"deep": {"n": i}, "list": [i, None]},
            "text": f"row {i} of a file\n\"quoted\" \\ \u2028",
        }
        for i in range(500)
    ]
    for name, options in {
        "zstd": {"compression": "zstd"},
        "snappy": {"compression": "snappy", "row_group_size": 70},
        "gzip": {"compression": "gzip", "use_dictionary": False},
        "brotli": {"compression": "brotli", "data_page_version": "2.0"},
        "lz4": {"compression": "lz4", "data_page_size": 256},
        "none": {"compression": "none"},
    }.items():
        table = pa.Table.from_pylist(chat)
        table = table.set_column(table.schema.get_field_index("kind"), "kind", table["kind"].dictionary_encode())
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, **options)
        call("perplexity", "--model", TINY, "--data-path", path, "--num-samples", 2, "--sequence-length", 16)
        made = max((tmp_path / "home/lquant/parquet").glob("*/*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
        assert [json.loads(line) for line in made.read_text(encoding="utf-8").split("\n") if line] == pq.read_table(path).to_pylist(), name


def test_a_fault_of_a_parquet_row_names_file_and_row(call, tmp_path):
    path = tmp_path / "words.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "the river"}, {"text": "the stone"}, {"text": None}]), path, row_group_size=2)
    said = sentence(call("perplexity", "--model", TINY, "--data-path", path, code=1))
    assert "words.parquet" in said and "row 3 has a text that is not a string" in said


@pytest.mark.parametrize("damage", ["cut", "noise", "text"])
def test_damaged_parquet(call, tmp_path, damage):
    whole = parquet(texts(100))
    path = tmp_path / "rows.parquet"
    path.write_bytes({"cut": whole[: len(whole) // 2], "noise": whole[:200] + bytes(200) + whole[400:], "text": b"no parquet"}[damage])
    said = sentence(call("perplexity", "--model", TINY, "--data-path", path, code=1))
    assert "rows.parquet" in said and "make or download the file again" in said
    assert not list((tmp_path / "home").rglob("*.jsonl"))


def test_tasks_of_evaluate(hub, call):
    choices = {"text": ["a river", "a stone"], "label": ["A", "B"]}
    rows = [{"question": f"What is {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(12)]
    files = {f"{config}/test-00000-of-00001.parquet": parquet(rows[:n]) for config, n in [("ARC-Easy", 12), ("ARC-Challenge", 3)]}
    hub.add_repo("dataset", "allenai/ai2_arc", files)
    done = call("evaluate", "--model", TINY, "--tasks", "arc_easy", "--json")
    assert json.loads(done.stdout)["n-samples"]["arc_easy"]["effective"] == 12


# Upload


def test_upload(hub, call, quantized, tmp_path):
    done = call("upload", "--path", quantized, "--upload-repo", "tester/small-4bit", "--private")
    assert f"the model is at {hub.url}/tester/small-4bit" in done.stderr
    assert hub.repo("tester/small-4bit").private
    there, here = hub.files("tester/small-4bit"), tree(quantized)
    assert {name for name in there if name != ".gitattributes"} == set(here)
    assert all(there[name] == here[name] for name in here if name != "README.md")
    card = there["README.md"].decode()
    assert "- \"lquant\"" in card and "mlx_lm.generate --model tester/small-4bit" in card and "| bits per weight | 4.5" in card

    # A second time there is nothing to send.
    before = len(hub.commits("tester/small-4bit"))
    assert "0 of" in call("upload", "--path", quantized, "--upload-repo", "tester/small-4bit").stderr
    assert len(hub.commits("tester/small-4bit")) == before


def test_the_card_says_what_was_made_of_what(hub, call, tiny, tmp_path):
    hub.add_repo("model", "org/tiny", tiny | {"README.md": FRONT.encode()})
    rows = ["--data-path", "self", "--num-samples", 8, "--num-valid", 4, "--batch-size", 4, "--max-seq-length", 32]
    call("dwq", "--model", "org/tiny", "--bits", 3, *rows, "--mlx-path", "out")
    text = tmp_path / "prose.txt"
    text.write_text(" ".join(row["text"] for row in texts(40)))
    call("perplexity", "--model", "out", "--teacher", "org/tiny", "--data-path", text, "--sequence-length", 64, "--record")
    hub.clear_log()
    card = call("upload", "--path", "out", "--upload-repo", "tester/tiny-3bit", "--dry-run").stdout
    assert not hub.requests()
    for line in ('base_model: "org/tiny"', 'base_model_relation: "quantized"', 'license: "apache-2.0"', '- "de"', '- "mlx"'):
        assert line in card, card
    assert "lquant dwq --model org/tiny --bits 3" in card
    assert "KL to the original on held-out rows" in card and "(prose.txt, " in card and "model.safetensors" in card


def test_an_upload_that_failed_is_continued(hub, call, quantized, tmp_path):
    """Three shards, each a commit of its own: the second fails for good, and the second run sends what is missing."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, content in tree(quantized).items():
        if not name.startswith("model"):
            (folder / name).write_bytes(content)
    rng = random.Random(0)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        noise = mx.array(memoryview(rng.randbytes(10_100_000)).cast("B"))
        mx.save_safetensors(str(folder / name), {f"w{i}": noise}, {"format": "mlx"})
    index = {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    arguments = ["upload", "--path", folder, "--upload-repo", "tester/three"]
    hub.fail("POST .*commit/main", 400, skip=1, message="no room")
    said = sentence(call(*arguments, code=1))
    assert "tester/three" in said and "no room" in said and "the same command continues" in said
    assert names[0] in hub.files("tester/three") and names[1] not in hub.files("tester/three")
    hub.clear_log()
    assert "were there already" in call(*arguments).stderr
    there = hub.files("tester/three")
    assert all(there[name] == (folder / name).read_bytes() for name in names)
    sent = [operation[1] for commit in hub.commits("tester/three") for operation in commit.operations]
    assert sorted(name for name in sent if name in names) == names, "no shard was committed twice"
    titles = [commit.title for commit in hub.commits("tester/three")]
    assert titles[0].endswith("(3 of 3)"), titles


def test_an_upload_to_a_busy_storage(hub, call, quantized):
    hub.fail("POST /v1/xorbs", 503)
    hub.fail("POST .*preupload", 429, retry_after=1)
    hub.fail("POST .*commit/main", 503)
    call("upload", "--path", quantized, "--upload-repo", "tester/busy", "--revision", "v2")
    assert "model.safetensors" in hub.files("tester/busy", "v2") and "model.safetensors" not in hub.files("tester/busy", "main")


def test_uploads_that_are_refused(hub, call, quantized, tmp_path):
    upload = ["upload", "--path", quantized, "--upload-repo"]
    assert "log in (hf auth login) or set HF_TOKEN" in sentence(call(*upload, "tester/x", code=1, token=None))
    assert "use one with write access" in sentence(call(*upload, "tester/x", code=1, token=MockHub.read_token))
    assert "use one with write access" in sentence(call(*upload, "alien/x", code=1))
    assert "is no name of a repository; write user/name" in sentence(call(*upload, "no-slash", code=2))
    assert "there is no such folder" in sentence(call("upload", "--path", tmp_path / "none", "--upload-repo", "tester/x", code=1))
    assert "HF_HUB_OFFLINE is set" in sentence(call(*upload, "tester/x", code=1, HF_HUB_OFFLINE="1"))
    assert not hub.requests(status=200, method="POST")


def test_a_card_of_somebody_else_stays(hub, call, quantized, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in tree(quantized).items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    call("upload", "--path", folder, "--upload-repo", "tester/mine")
    assert hub.files("tester/mine")["README.md"].decode() == "---\nlicense: mit\n---\nMy own words.\n"
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "front matter is no valid YAML" in sentence(call("upload", "--path", folder, "--upload-repo", "tester/mine", code=1))


def test_convert_uploads(hub, call):
    call("convert", "--model", TINY, "-q", "--mlx-path", "out", "--upload-repo", "tester/made")
    assert "model.safetensors" in hub.files("tester/made")
    assert "is no name of a repository" in sentence(call("convert", "--model", TINY, "-q", "--mlx-path", "other", "--upload-repo", "a", code=2))


def test_a_build_without_the_library_says_how_to_get_it(tmp_path):
    program = tmp_path / "lquant"
    shutil.copy(LQUANT, program)
    # The build's folder stands in the copy's list of places; a name of another length would move what follows.
    folder = str(Path(LQUANT).parent).encode()
    program.write_bytes(program.read_bytes().replace(folder + b":", b"/" * len(folder) + b":"))
    done = run("convert", "--model", "org/none", code=1, program=program)
    assert "make hub" in done.stderr
