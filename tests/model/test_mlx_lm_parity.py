"""The forward pass of every family against mlx_lm's own model code, on random tiny checkpoints.

mlx_lm builds the model and its random weights, writes the folder, loads it back as a user would, and gives the logits;
`lquant logits` must give the same ones from that folder. The binary is named by the environment variable LQUANT.
"""

import json
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from families import ENVIRONMENT, FAMILIES, LQUANT, TINY, assert_close, build, lquant_logits, mlx_lm_logits, save, token_ids
from mlx_lm import utils

# name: (family, group size, bits, mode, what quantizes a path: None for mlx_lm's own choice)
QUANTIZED = {
    "2-bit": ("llama", 32, 2, "affine", None),
    "3-bit": ("llama", 64, 3, "affine", None),
    "4-bit": ("llama", 128, 4, "affine", None),
    "5-bit": ("llama-untied-biases", 64, 5, "affine", None),
    "6-bit": ("gemma3", 64, 6, "affine", None),
    "8-bit": ("qwen2", 32, 8, "affine", None),
    "fused": ("phi3", 64, 4, "affine", None),
    "mxfp4": ("llama", 32, 4, "mxfp4", None),
    "mxfp8": ("phi3", 32, 8, "mxfp8", None),
    "nvfp4": ("qwen3", 16, 4, "nvfp4", None),
    "experts": ("qwen3-moe", 64, 4, "affine", None),
    "experts-mxfp4": ("qwen3-moe", 32, 4, "mxfp4", None),
    "by-head": ("gpt_neox", 64, 4, "affine", None),
    "positions": ("gpt2", 64, 4, "affine", None),
    "advised": ("granite-untied-biases-yarn", 32, 4, "mxfp4", None),
    "overrides": (
        "llama-untied-biases",
        64,
        4,
        "affine",
        lambda path, _: (
            {"group_size": 32, "bits": 6, "mode": "affine"}
            if "down_proj" in path
            else {"group_size": 32, "bits": 8, "mode": "mxfp8"} if "o_proj" in path else "lm_head" not in path and "embed" not in path
        ),
    ),
}
SIXTEEN_BIT = ["cohere", "cohere2", "olmo2", "phi", "stablelm-parallel-qk-norms", "granite-untied-biases-yarn", "gpt_neox", "gpt2", "nemotron"]


@pytest.mark.parametrize("name", FAMILIES)
def test_float32(name, tmp_path):
    model, config, unstacked, untied = build(name, seed=1)
    save(tmp_path, model, config, unstacked, untied)
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized(name, tmp_path):
    family, group_size, bits, mode, predicate = QUANTIZED[name]
    model, config, _, untied = build(family, seed=2)
    if config["model_type"] == "gemma3_text" and not untied:
        model.pop("lm_head")
    model, config = utils.quantize_model(model, config, group_size, bits, mode=mode, quant_predicate=predicate)
    save(tmp_path, model, config, untied=untied)
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen2", "qwen3", "smollm3", "phi3-partial-longrope", "gemma2", "gemma3", *SIXTEEN_BIT])
def test_bfloat16(name, tmp_path):
    """Two sound bf16 computations err equally: independent roundings of relative size 2^-9, as many in each.

    The root mean square over some thousand logits knows that size to a few per cent; half as much again is allowed for
    the places where the two round differently (a sum kept in f32 here, rounded there).
    """
    model, config, unstacked, untied = build(name, seed=3)
    model.set_dtype(mx.bfloat16)
    save(tmp_path, model, config, unstacked, untied)
    ids = token_ids(config["vocab_size"])
    exact = mlx_lm_logits(tmp_path, ids, mx.float32)
    rms = lambda x: np.sqrt(np.mean(np.square(x)))
    assert rms(lquant_logits(tmp_path, ids, "bfloat16") - exact) <= 1.5 * rms(mlx_lm_logits(tmp_path, ids) - exact)


def test_embedded_model(tmp_path):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    ids = token_ids(json.loads((TINY / "config.json").read_text())["vocab_size"], rows=1, length=40)
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids, mx.float32))


def test_generate_says_what_mlx_lm_says(tmp_path):
    """Greedy decoding in f32, where a tie closer than the two programs' rounding is next to impossible."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    weights = mx.load(str(TINY / "model.safetensors"))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {k: v.astype(mx.float32) for k, v in weights.items()}, metadata={"format": "mlx"})
    from mlx_lm import generate, load

    model, tokenizer = load(str(tmp_path))
    prompt = "Once upon a time"
    theirs = generate(model, tokenizer, tokenizer.encode(prompt), max_tokens=24)
    command = [LQUANT, "generate", "--model", str(tmp_path), "-p", prompt, "-m", "24", "--ignore-chat-template", "--verbose", "F"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == theirs + "\n"


def test_unknown_family_is_named(tmp_path):
    model, config, *_ = build("llama", seed=1)
    save(tmp_path, model, dict(config, model_type="abacus"))
    (tmp_path / "ids.json").write_text("[[1]]")
    command = [LQUANT, "logits", "--model", tmp_path, "--ids", tmp_path / "ids.json", "--output", tmp_path / "out.safetensors"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "abacus" in done.stderr and "qwen3_moe" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
