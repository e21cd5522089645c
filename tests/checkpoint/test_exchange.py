"""The checkpoint room against the packages that others read and write these files with: safetensors, MLX, mlx_lm."""

import json
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import safetensors

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ["LQUANT"]).resolve().parent / "tests" / "test_checkpoint"

# One of each dtype; sizes that leave the next one unaligned.
NUMPY = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32, "I32": np.int32,
    "U64": np.uint64, "I64": np.int64, "F16": np.float16, "F32": np.float32, "F64": np.float64,
}
BITS = {"BF16": np.uint16, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8}  # numpy knows only their bits


def ask(test, **environment):
    result = subprocess.run([PROGRAM, f"--gtest_filter=Exchange.{test}"], env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SKIPPED" not in result.stdout


def numbers(dtype, generator):
    if dtype in BITS:
        return generator.integers(0, np.iinfo(BITS[dtype]).max, (3, 5), endpoint=True).astype(BITS[dtype])
    if dtype == "BOOL":
        return generator.integers(0, 2, (3, 5)).astype(np.bool_)
    if dtype.startswith("F"):
        return generator.normal(0, 10, (3, 5)).astype(NUMPY[dtype])
    limits = np.iinfo(NUMPY[dtype])
    return generator.integers(limits.min, limits.max, (3, 5), dtype=NUMPY[dtype], endpoint=True)


def expected(dtype, values):
    """What the copy holds: (dtype, bytes)."""
    if dtype == "F64":
        return "F32", values.astype(np.float32).tobytes()
    if dtype == "F8_E4M3":
        wide = mx.from_fp8(mx.array(values), mx.bfloat16)
        return "BF16", np.array(mx.view(wide, mx.uint16)).tobytes()
    if dtype == "F8_E5M2":  # the upper byte of a float16
        wide = mx.array((values.astype(np.uint16) << 8).view(np.float16)).astype(mx.bfloat16)
        return "BF16", np.array(mx.view(wide, mx.uint16)).tobytes()
    return dtype, values.tobytes()


def without_nan(dtype, raw):
    """NaNs compare by being NaN: of their bits nothing is promised where a value is converted."""
    if dtype != "BF16":
        return raw
    bits = np.frombuffer(raw, np.uint16).copy()
    bits[(bits & 0x7FFF) > 0x7F80] = 0x7FC0
    return bits.tobytes()


def test_every_dtype_survives_the_round_trip(tmp_path):
    generator = np.random.default_rng(3)
    values = {dtype: numbers(dtype, generator) for dtype in NUMPY | BITS}
    header, data = {}, b""
    for dtype, value in values.items():  # not sorted by alignment as the package would: everything after BOOL lies odd
        header[f"t.{dtype}"] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text('{"model_type": "none"}')
    text = json.dumps(header).encode()
    (tmp_path / "in" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    ask("CopiesAFolder", LQUANT_EXCHANGE=str(tmp_path))

    copy = dict(safetensors.deserialize((tmp_path / "out" / "model.safetensors").read_bytes()))
    assert set(copy) == set(header)
    for dtype, value in values.items():
        stored, raw = expected(dtype, value)
        got = copy[f"t.{dtype}"]
        assert got["dtype"] == stored and got["shape"] == [3, 5], dtype
        if dtype == stored:
            assert bytes(got["data"]) == raw, dtype
        else:
            assert without_nan(stored, bytes(got["data"])) == without_nan(stored, raw), dtype


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    from safetensors.numpy import save_file

    generator = np.random.default_rng(4)
    values = {f"{i}.{dtype}": numbers(dtype, generator) for i in range(3) for dtype in NUMPY if dtype != "F64"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text("{}")
    save_file(values, tmp_path / "in" / "model.safetensors", metadata={"format": "pt"})
    ask("CopiesAFolder", LQUANT_EXCHANGE=str(tmp_path))
    copy = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert set(copy) == set(values)
    for name, value in values.items():
        assert np.array_equal(np.array(copy[name]), value), name


def test_mlx_lm_loads_a_written_folder(tmp_path):
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    shutil.copytree(ROOT / "models" / "tiny", tmp_path / "in")
    ask("CopiesAFolder", LQUANT_EXCHANGE=str(tmp_path))
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    before, config_before = load_model(tmp_path / "in")
    after, config_after = load_model(tmp_path / "out")
    assert config_before == config_after
    before, after = dict(tree_flatten(before.parameters())), dict(tree_flatten(after.parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_size": sum(v.nbytes for v in before.values()),
        "total_parameters": sum(v.size for v in before.values()),
    }
    for name, file in index["weight_map"].items():
        assert name in mx.load(str(tmp_path / "out" / file))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def verdicts(folder, files):
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    ask("JudgesFiles", LQUANT_VERDICTS=str(folder))
    return {name: v == "" for name, v in json.loads((folder / "verdicts.json").read_text()).items() if name in files}


def reference_accepts(raw):
    try:
        safetensors.deserialize(raw)
        return True
    except Exception:
        return False


def file_of(header, data):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + data


ENTRY = '"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
# Accepted by the package and refused here, each for a reason: the specification forbids the first two, MLX cannot hold the third.
STRICTER = {
    "space_first": file_of(" {" + ENTRY + "}", b"xx"),
    "same_name_twice": file_of("{" + ENTRY + "," + ENTRY + "}", b"xx"),
    "too_long_for_mlx": file_of('{"w":{"dtype":"U8","shape":[0,4294967296],"data_offsets":[0,0]}}', b""),
}


def test_stricter_than_the_reference_only_on_purpose(tmp_path):
    assert all(reference_accepts(raw) for raw in STRICTER.values())
    assert not any(verdicts(tmp_path, STRICTER).values())


def test_judges_as_the_reference_does(tmp_path):
    """Mutated headers: what is accepted here is accepted there; what is accepted there and not here is one of the strict rules."""
    generator = random.Random(11)
    sound = (
        '{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},'
        '"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]},"c":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}}'
    )
    pieces = ["0", "1", "16", "-", ",", "[", "]", "{", "}", '"', ":", "null", " ", "1.0", "e3", '"b"', "18446744073709551615", "\\u0041", "F64"]
    files = {}
    for i in range(1500):
        header = sound
        for _ in range(generator.randint(1, 2)):
            at = generator.randrange(len(header))
            header = header[:at] + generator.choice(pieces + [""]) + header[at + generator.randint(0, 3):]
        files[f"{i}.safetensors"] = file_of(header, b"d" * 16)
    ours = verdicts(tmp_path, files)
    theirs = {name: reference_accepts(raw) for name, raw in files.items()}
    assert 50 < sum(ours.values()) < 1000
    assert [name for name in files if ours[name] and not theirs[name]] == []
    messages = json.loads((tmp_path / "verdicts.json").read_text())
    reasons = ("does not start with '{'", "twice", "__metadata__ is not an object", "MLX holds at most")
    odd = [messages[name] for name in files if theirs[name] and not ours[name]]
    assert [m for m in odd if not any(reason in m for reason in reasons)] == []
