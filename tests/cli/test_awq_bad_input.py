"""Whatever is wrong with scales, wishes and weights that meet `lquant awq`: one sentence that names it, and nothing left behind."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
from support import run, same_bytes, tensors
from test_awq import awq, model, plain, rows  # noqa: F401 (fixtures)
from test_bad_input import out, refused  # noqa: F401


@pytest.fixture(scope="module")
def scaled(model, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("awq") / "result"
    run(*awq(model, rows, folder, "--num-samples", 8, "--n-grid", 2, "--no-clip"))
    return folder


NORM = "model.layers.1.input_layernorm"


def one_changed(value):
    return lambda scales: scales | {NORM: mx.concatenate([mx.array([value], mx.float32), scales[NORM][1:]])}


# What becomes of the file's bytes, or of its tensors.
BYTES = {
    "cut": lambda content: content[:-10],
    "garbage": lambda content: np.random.default_rng(1).bytes(len(content)),
    "empty": lambda content: b"",
}
TENSORS = {
    "of-another-model": lambda scales: {name.replace("layers.1.", "layers.9."): s for name, s in scales.items()},
    "of-no-producer": lambda scales: scales | {"model.layers.1.mlp.gate_proj": scales[NORM]},
    "too-narrow": lambda scales: scales | {NORM: scales[NORM][1:]},
    "of-experts": lambda scales: scales | {NORM: mx.stack([scales[NORM]] * 2)},
    "bfloat16": lambda scales: scales | {NORM: scales[NORM].astype(mx.bfloat16)},
    "zero": one_changed(0),
    "negative": one_changed(-1),
    "nan": one_changed(float("nan")),
    "infinite": one_changed(float("inf")),
}


@pytest.mark.parametrize("damage", [*BYTES, *TENSORS])
def test_scales_that_are_damaged(model, rows, scaled, out, tmp_path, damage):
    folder = tmp_path / "scaled"
    shutil.copytree(scaled, folder)
    file = folder / "scales.awq"
    if damage in BYTES:
        file.write_bytes(BYTES[damage](file.read_bytes()))
    else:
        mx.save_safetensors(str(tmp_path / "new.safetensors"), TENSORS[damage](mx.load(str(file), format="safetensors")))
        (tmp_path / "new.safetensors").rename(file)
    named = {"of-another-model": "model.layers.9.", "of-no-producer": "model.layers.1.mlp.gate_proj"}.get(damage, NORM if damage in TENSORS else "")
    inputs = ["--model", model, "--data-path", rows, "--mlx-path", out / "result"]
    refused(out, ["gptq", *inputs, "--scales", folder], file, named)
    refused(out, ["dwq", *inputs, "--quantized-model", folder], file, named)


def test_scales_that_are_not_there(model, rows, plain, out, tmp_path):
    gptq = ["gptq", "--model", model, "--data-path", rows, "--num-samples", 8, "--mlx-path"]
    refused(out, [*gptq, out / "result", "--scales", out / "nowhere"], out / "nowhere", "--scales")
    # A result of awq in which no scale was of use has no such file: then it is as without.
    done = run(*gptq, out / "with", "--scales", plain)
    run(*gptq, out / "without")
    assert "holds no scales" in done.stderr and tensors(out / "with").keys() == tensors(out / "without").keys()
    assert all(same_bytes(tensor, tensors(out / "without")[name]) for name, tensor in tensors(out / "with").items())


def test_wrong_usage(model, rows, out):
    refused(out, awq(model, rows, out / "result", "--then-samples", 16), "--then-samples", "--then", code=2)
    refused(out, awq(model, rows, out / "result", "--n-grid", 0), "--n-grid", code=2)
    refused(out, awq(model, rows, out / "result", "--inputs", "all"), "--inputs", "all", code=2)
    refused(out, awq(model, rows, out / "result", "--then", "rtn"), "--then", "rtn", code=2)
    refused(out, awq(model, rows, out / "result", "--then", "gptq", "--then-samples", 0), "--then-samples", code=2)
    refused(out, awq(model, rows, out / "result", "--sequence-length", 0), "--sequence-length", code=2)
    refused(out, awq(model, rows, out / "result", "--then", "dwq", "--data-path", rows, rows), "--then dwq", "--data-path", code=2)
    refused(out, ["awq"], "--model", "lquant awq --help", code=2)


@pytest.mark.parametrize("then", [[], ["--then", "gptq"]])
def test_formats_that_do_not_exist(model, rows, out, then):
    for flag, value in {"--bits": 7, "--group-size": 48, "--embed-bits": 1, "--embed-group-size": 16}.items():
        refused(out, awq(model, rows, out / "result", flag, value, *then), value, "choose")


@pytest.mark.parametrize("then", [[], ["--then", "gptq"], ["--then", "dwq"]])
def test_what_stands_in_the_way(model, rows, out, then):
    refused(out, awq(model, out / "rows.jsonl", out / "result", *then), out / "rows.jsonl", "--data-path")
    refused(out, awq(out / "model", rows, out / "result", *then), out / "model")
    (out / "result").mkdir()
    (out / "result" / "notes.txt").write_text("dear to someone")
    refused(out, awq(model, rows, out / "result", *then), out / "result", "--mlx-path")


@pytest.mark.parametrize("tensor,value", [("layers.1.mlp.up_proj", "nan"), ("layers.0.self_attn.o_proj", "inf"), ("embed_tokens", "nan")])
def test_weights_that_are_not_numbers(model, rows, tmp_path, tensor, value):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = tensors(broken)
    weights[f"model.{tensor}.weight"][3, 5] = float(value)
    mx.save_safetensors(str(broken / "model.safetensors"), weights, metadata={"format": "mlx"})
    done = run(*awq(broken, rows, tmp_path / "result", "--num-samples", 8, "--n-grid", 2), code=1)
    assert f'"model.{tensor}.weight"' in done.stderr.strip().split("\n")[-1], done.stderr
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize("tensor,block", [("layers.0.self_attn.q_proj", 0), ("layers.1.mlp.down_proj", 1)])
def test_activations_that_overflow(model, rows, tmp_path, tensor, block):
    """Finite weights that make infinite activations: the block where they arise is named."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = tensors(broken)
    weights[f"model.{tensor}.weight"][3] = 3e38
    mx.save_safetensors(str(broken / "model.safetensors"), weights, metadata={"format": "mlx"})
    done = run(*awq(broken, rows, tmp_path / "result", "--num-samples", 8, "--n-grid", 2), code=1)
    last = done.stderr.strip().split("\n")[-1]
    assert f"block {block}: " in last and "became NaN or infinite on the calibration data" in last, done.stderr
    assert not (tmp_path / "result").exists()
