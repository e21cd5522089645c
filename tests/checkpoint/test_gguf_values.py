"""Every GGUF type against the `gguf` package, bit for bit: what lquant makes of blocks of random bytes."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file

PROGRAM = Path(os.environ["LQUANT"]).resolve().parent / "tests" / "test_checkpoint"

# Where the f16 scales of a block stand. MXFP4's scale is a byte, any of which is a number.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2],
    "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
# Subnormal, smallest, largest and signed zeros among them.
CORNERS = np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, 1.0], np.float16)


def random_blocks(name, rng, rows, blocks):
    """[rows, blocks · bytes]: random bytes are valid codes, and scales are finite halves of every size."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    data = rng.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    for place in SCALES[name]:
        bits = rng.integers(0, 1 << 16, rows * blocks, dtype=np.uint16)
        bits[(bits & 0x7C00) == 0x7C00] ^= 0x4000
        bits[: len(CORNERS)] = CORNERS.view(np.uint16)
        data[:, place : place + 2] = bits.view(np.uint8).reshape(-1, 2)
    return data.reshape(rows, blocks * size)


def read(path):
    environment = os.environ | {"LQUANT_GGUF": str(path)}
    done = subprocess.run([PROGRAM, "--gtest_filter=Exchange.DequantizesGguf"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, done.stdout + done.stderr
    return load_file(f"{path}.out/model.safetensors")


def compare(path):
    ours = read(path)
    tensors = GGUFReader(path).tensors
    assert ours.keys() == {t.name for t in tensors}
    for t in tensors:
        expected = dequantize(t.data, t.tensor_type).astype(np.float32)
        assert ours[t.name].shape == expected.shape
        assert np.array_equal(ours[t.name].view(np.uint32), expected.view(np.uint32)), t.name
    return len(tensors)


def write(path, tensors):
    writer = GGUFWriter(path, "none")
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", SCALES)
def test_random_blocks(name, tmp_path):
    rng = np.random.default_rng(list(SCALES).index(name))
    kind = GGMLQuantizationType[name]
    # One short tensor, and one of more rows than a thread takes at once.
    short, long = random_blocks(name, rng, 3, 16), random_blocks(name, rng, 700, 8)
    write(tmp_path / "x.gguf", [("short", short, kind), ("long", long, kind)])
    assert compare(tmp_path / "x.gguf") == 2


def test_plain_types(tmp_path):
    rng = np.random.default_rng(5)
    halves = np.arange(1 << 16, dtype=np.uint16)
    halves = halves[(halves & 0x7C00) != 0x7C00]  # all finite ones
    write(
        tmp_path / "x.gguf",
        [
            ("f32", rng.standard_normal((70, 33)).astype(np.float32), None),
            ("f16", halves.view(np.float16).reshape(64, -1), None),
            ("bf16", rng.integers(0, 256, (50, 128), dtype=np.uint8), GGMLQuantizationType.BF16),
        ],
    )
    # The package turns BF16 into floats with the same bits above sixteen zeros; so NaNs compare too.
    assert compare(tmp_path / "x.gguf") == 3


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_what_the_package_quantizes(name, tmp_path):
    values = np.random.default_rng(9).standard_normal((40, 256)).astype(np.float32)
    kind = GGMLQuantizationType[name]
    write(tmp_path / "x.gguf", [("w", quantize(values, kind), kind)])
    assert compare(tmp_path / "x.gguf") == 1


def test_integers_and_doubles(tmp_path):
    rng = np.random.default_rng(6)
    tensors = {
        "i8": rng.integers(-128, 128, (3, 5), dtype=np.int8), "i16": rng.integers(-999, 999, (3, 5), dtype=np.int16),
        "i32": rng.integers(-999, 999, (3, 5), dtype=np.int32), "i64": rng.integers(-999, 999, (3, 5), dtype=np.int64),
        "f64": rng.standard_normal((3, 5)),
    }  # fmt: skip
    write(tmp_path / "x.gguf", [(name, data, None) for name, data in tensors.items()])
    ours = read(tmp_path / "x.gguf")
    for name, data in tensors.items():
        expected = data.astype(np.float32) if name == "f64" else data
        assert ours[name].dtype == expected.dtype and np.array_equal(ours[name], expected), name
