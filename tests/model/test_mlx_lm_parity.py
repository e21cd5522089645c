"""The forward pass of every family against mlx_lm's own model code, on random tiny checkpoints.

mlx_lm builds the model and its random weights, writes the folder, loads it back as a user would, and gives the logits;
`lquant logits` must give the same ones from that folder. The binary is named by the environment variable LQUANT.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm import utils

LQUANT = os.environ.get("LQUANT", "lquant")
# Threads that wait by spinning make tiny models crawl where the machine is shared, as test machines are.
ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive")
TINY = Path(__file__).parents[2] / "models" / "tiny"

# Wide enough for groups of 128 in every linear, with grouped heads, and a window (8) shorter than the sequence (24).
BASE = dict(
    hidden_size=128,
    num_hidden_layers=3,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    vocab_size=160,
    max_position_embeddings=64,
    rope_theta=10000.0,
    tie_word_embeddings=True,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
# A ramp that starts at feature 1 and ends inside the head, so that both ends tell.
YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=512)
MOE = dict(
    model_type="qwen3_moe",
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=128,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
)


def longrope(kind, features):
    return dict(type=kind, short_factor=[1.0] * features, long_factor=[1.0 + 0.3 * i for i in range(features)])


FAMILIES = {
    "llama": dict(model_type="llama"),
    "llama-untied-biases": dict(model_type="llama", tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama-all-heads-default-dim": dict(model_type="llama", num_key_value_heads=None, head_dim=None),
    "llama-wide-heads": dict(model_type="llama", head_dim=64),
    "llama-interleaved-linear": dict(model_type="llama", rope_traditional=True, rope_scaling=dict(type="linear", factor=4.0)),
    "llama-llama3": dict(model_type="llama", rope_theta=500000.0, rope_scaling=LLAMA3),
    "llama-yarn": dict(model_type="llama", rope_scaling=YARN),
    "llama-dynamic": dict(model_type="llama", max_position_embeddings=16, rope_scaling=dict(type="dynamic", factor=2.0)),
    "llama-windows": dict(
        model_type="llama", sliding_window=8, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
    "mistral": dict(model_type="mistral", head_dim=None, sliding_window=8, tie_word_embeddings=False),
    "qwen2": dict(model_type="qwen2"),
    "qwen2-untied-yarn": dict(model_type="qwen2", tie_word_embeddings=False, rope_scaling=YARN),
    "qwen3": dict(model_type="qwen3"),
    "qwen3-nested-rope": dict(
        model_type="qwen3", tie_word_embeddings=False, rope_theta=None, rope_parameters=dict(YARN, rope_theta=20000.0)
    ),
    "smollm3": dict(model_type="smollm3", num_hidden_layers=5),
    "smollm3-listed": dict(model_type="smollm3", no_rope_layers=[0, 1, 0]),
    "phi3": dict(model_type="phi3", tie_word_embeddings=False),
    "phi3-partial-longrope": dict(
        model_type="phi3",
        partial_rotary_factor=0.75,
        original_max_position_embeddings=16,
        rope_scaling=longrope("longrope", 12),
    ),
    "phi3-su": dict(model_type="phi3", original_max_position_embeddings=32, rope_scaling=longrope("su", 16)),
    "phi3-linear": dict(model_type="phi3", rope_scaling=dict(type="linear", factor=2.0, long_factor=1.0)),
    "gemma2": dict(model_type="gemma2", query_pre_attn_scalar=24.0, attn_logit_softcapping=5.0, final_logit_softcapping=8.0),
    "gemma3": dict(model_type="gemma3_text", sliding_window=8, sliding_window_pattern=2, query_pre_attn_scalar=48.0),
    "gemma3-untied-scaled": dict(
        model_type="gemma3_text",
        untied=True,
        sliding_window=8,
        sliding_window_pattern=3,
        rope_scaling=dict(rope_type="linear", factor=8.0),
    ),
    "qwen3-moe": MOE,
    "qwen3-moe-unstacked": dict(MOE, unstacked=True),
    "qwen3-moe-some-dense-raw-probabilities": dict(MOE, mlp_only_layers=[1], norm_topk_prob=False, tie_word_embeddings=False),
}

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


def build(name, seed):
    """A random model: products keep the size of their input, norms and biases are far from 1 and 0."""
    config = dict(BASE, **FAMILIES[name])
    unstacked, untied = config.pop("unstacked", False), config.pop("untied", False)
    config = {k: v for k, v in config.items() if v is not None}
    if config["model_type"] == "qwen2":
        config.pop("head_dim")
    model_class, args_class = utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    rng = np.random.default_rng(seed)
    gemma = config["model_type"].startswith("gemma")

    def draw(path, old):
        noise = rng.standard_normal(old.shape).astype(np.float32)
        if old.ndim == 1:
            centre = 1.0 if "norm" in path and not gemma else 0.0
            return mx.array(centre + 0.3 * noise)
        return mx.array(noise * (1.0 if "embed" in path else 1.2 / np.sqrt(old.shape[-1])))

    weights = [(path, draw(path, old)) for path, old in tree_flatten(model.parameters())]
    model.load_weights(weights)
    return model, config, unstacked, untied


def save(folder, model, config, unstacked=False, untied=False):
    weights = dict(tree_flatten(model.parameters()))
    if config["model_type"] == "gemma3_text" and not untied:
        weights = {k: v for k, v in weights.items() if not k.startswith("lm_head")}
    if unstacked:
        for name in [n for n in weights if "switch_mlp" in n]:
            for e, w in enumerate(weights.pop(name)):
                weights[name.replace("switch_mlp", f"experts.{e}")] = mx.contiguous(w)
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def token_ids(vocab, seed=7, rows=2, length=24):
    return np.random.default_rng(seed).integers(0, vocab, (rows, length)).tolist()


def lquant_logits(folder, ids, dtype):
    (folder / "ids.json").write_text(json.dumps(ids))
    output = folder / "logits.safetensors"
    command = [LQUANT, "logits", "--model", folder, "--ids", folder / "ids.json", "--output", output, "--dtype", dtype]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return np.array(mx.load(str(output))["logits"])


def mlx_lm_logits(folder, ids, dtype=None):
    model, _ = utils.load_model(folder)
    if dtype is not None:
        model.update(tree_map(lambda p: p.astype(dtype) if mx.issubdtype(p.dtype, mx.floating) else p, model.parameters()))
    return np.array(model(mx.array(ids)).astype(mx.float32))


def assert_close(ours, theirs):
    # Both sum the same few hundred f32 products in different orders, three blocks deep: about 1e-6 of the values. 1e-4 of
    # the logits' range leaves room for what the blocks amplify, and is far below what any wrong constant would do.
    assert ours.shape == theirs.shape
    spread = theirs.max() - theirs.min()
    assert np.abs(ours - theirs).max() <= 1e-4 * spread


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


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen2", "qwen3", "smollm3", "phi3-partial-longrope", "gemma2", "gemma3"])
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
