"""The forward pass of every family against mlx_lm's own model code, on random tiny checkpoints.

mlx_lm builds the model and its random weights, writes the folder, loads it back as a user would, and gives the logits;
`lquant logits` must give the same ones from that folder. The binary is named by the environment variable LQUANT.
"""

import json
import re
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from families import FAMILIES
from families_page import EXPECTED
from mlx_lm import generate, load, utils
from mlx_lm.generate import generate_step
from tiny_models import (
    ENVIRONMENT,
    LQUANT,
    TINY,
    assert_close,
    build,
    cache_for,
    family_folder,
    is_embedding,
    lquant_logits,
    mlx_lm_logits,
    save,
    token_ids,
)

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


def program(*arguments):
    """What the command prints."""
    done = subprocess.run([str(a) for a in (LQUANT, *arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", FAMILIES)
def test_float32(name, tmp_path, ran):
    model, config, unstacked, untied = build(name, seed=1)
    save(tmp_path, model, config, unstacked, untied)
    ids = token_ids(config["vocab_size"])
    ran("logits f32", name, assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids)))


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


@pytest.mark.parametrize("name", EXPECTED["logits bf16"])
def test_bfloat16(name, tmp_path, ran):
    """Two sound bf16 computations err equally: independent roundings of relative size 2^-9, as many in each.

    The root mean square over some thousand logits knows that size to a few per cent; half as much again is allowed for
    the places where the two round differently (a sum kept in f32 here, rounded there).
    """
    model, config, unstacked, untied = build(name, seed=3)
    model.set_dtype(mx.bfloat16)
    save(tmp_path, model, config, unstacked, untied)
    ids = token_ids(config["vocab_size"])
    exact = mlx_lm_logits(tmp_path, ids, mx.float32)
    rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
    error = rms(lquant_logits(tmp_path, ids, "bfloat16") - exact)
    assert error <= 1.5 * rms(mlx_lm_logits(tmp_path, ids) - exact)
    ran("logits bf16", name, error / float(np.ptp(exact)))


def test_published_gpt_oss(tmp_path):
    """Experts in mxfp4 blocks, gate and up in one tensor: mlx_lm runs them as they are, so that both compute with the same numbers."""
    model, config, *_ = build("gpt_oss", seed=4)
    save(tmp_path, model, config, unstacked=True)
    assert any(name.endswith("gate_up_proj_blocks") for name in mx.load(str(tmp_path / "model.safetensors")))
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))
    # As mlx_lm keeps them: the same codes in its own tensors, of which config.json says no more than before.
    weights = model.sanitize(mx.load(str(tmp_path / "model.safetensors")))
    mx.eval(weights)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, metadata={"format": "mlx"})
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))


def minimax_m3_in_another_form(weights, fold, fuse):
    """A dense layer's MLP under the mixtures' name; the expert that every token meets as the last of each stack; gate and up in one tensor."""
    found = {name.replace(".mlp.", ".block_sparse_moe."): w for name, w in weights.items()}
    for name in [n for n in found if ".switch_mlp." in n] if fold else []:
        shared = found.pop(name.replace("switch_mlp", "shared_experts"))
        found[name] = mx.concatenate([found[name], shared[None]])
    for name in [n for n in found if re.search(r"(switch_mlp|shared_experts)\.gate_proj", n)] if fuse else []:
        both = [found.pop(name), found.pop(name.replace("gate_proj", "up_proj"))]
        found[name.replace("gate_proj", "gate_up_proj")] = mx.concatenate(both, axis=-2)
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("fold, fuse", [(True, False), (False, True), (True, True)], ids=["folded", "fused", "both"])
def test_forms_of_minimax_m3(fold, fuse, packed, tmp_path):
    model, config, *_ = build("minimax_m3_vl", seed=4)
    if packed:
        model, config = utils.quantize_model(model, config, 64, 4, mode="affine")
    save(tmp_path, model, config)
    file = str(tmp_path / "model.safetensors")
    weights = minimax_m3_in_another_form(mx.load(file), fold, fuse)
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))


def test_published_minimax_m3_in_mxfp8(tmp_path):
    """Bytes of e4m3 beside an exponent for 32 of them, which both decode exactly; experts one by one, a tower and projectors beside them."""
    model, config, *_ = build("minimax_m3_vl", seed=4)
    config["quantization_config"] = dict(quant_method="mxfp8", modules_to_not_convert=["embed_tokens", "lm_head", "block_sparse_moe.gate"])
    save(tmp_path, model, config, unstacked=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    file = str(tmp_path / "model.safetensors")
    weights = mx.load(file)
    for name in [n for n in weights if re.search(r"(_proj|w[123])\.weight$", n)]:
        codes, scales = mx.quantize(weights[name], group_size=32, bits=8, mode="mxfp8")
        weights[name], weights[name + "_scale_inv"] = codes.view(mx.uint8), scales
    kept = ("vision_tower.vision_model.pre_layrnorm.weight", "multi_modal_projector.linear_1.weight", "patch_merge_mlp.linear_2.weight")
    weights.update({name: mx.random.normal((8, 8)) for name in kept})
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "pt"})
    assert any(name.endswith("experts.0.w1.weight_scale_inv") for name in weights)
    ids = token_ids(config["vocab_size"])
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids))
    program("convert", "--model", tmp_path, "-q", "--dtype", "float32", "--mlx-path", tmp_path / "out")
    assert_close(lquant_logits(tmp_path / "out", ids, "float32"), mlx_lm_logits(tmp_path / "out", ids))
    written = {name: w for file in (tmp_path / "out").glob("*.safetensors") for name, w in mx.load(str(file)).items()}
    assert all(mx.array_equal(written[name], weights[name]) for name in kept)


PROMPT = "the winter light walks over old stone and the quiet river under a house"
TEXT = " ".join([PROMPT, "where bread grows with every letter she read"] * 3)


@pytest.fixture(scope="module")
def tokenizer():
    return utils.load_tokenizer(TINY)


def talkative(name, folder, tokenizer):
    """A model in f32, loaded in mlx_lm, and what it says: texts of many tokens, which depend on what its cache holds. Where embeddings outweigh the
    blocks, a tied model says its last token for ever; where norms blow up what attention has averaged, all tokens look alike to it."""
    family_folder(folder, name, seed=5, vocab_size=8192)
    stored = mx.load(str(folder / "model.safetensors"))
    for scale in (0.02, 0.01, 0.05, 0.1, 0.2, 0.4):
        tables = {path for path in stored if is_embedding(path) and "wpe" not in path}  # positions keep their weight beside them
        weights = {path: scale * weight if path in tables else weight for path, weight in stored.items()}
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
        model, _ = utils.load_model(folder)
        tokens = [int(token) for token, _ in generate_step(mx.array(tokenizer.encode(PROMPT)), model, max_tokens=24)]
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in tokens else tokens
        if len(set(tokens)) > 8:
            return model, tokens
    raise AssertionError(f"{name} says the same at any scale of its embeddings")


@pytest.mark.parametrize("name", EXPECTED["generate"])
def test_generate_and_perplexity(name, tmp_path, tokenizer, ran):
    """A text token by token with a cache, from a prompt longer than the windows (8), and the mean log-probability of rows, both in f32."""
    model, tokens = talkative(name, tmp_path, tokenizer)
    said = program("generate", "--model", tmp_path, "-p", PROMPT, "-m", 24, "--ignore-chat-template", "--verbose", "F")
    # Random tokens are not always whole characters: what stands for the rest stands there once. Python reads any end of a line as its own.
    meant = re.sub("\r\n?", "\n", tokenizer.decode(tokens))
    assert re.sub("\ufffd+", "\ufffd", said) == re.sub("\ufffd+", "\ufffd", meant) + "\n"
    ran("generate", name)

    (tmp_path / "text.txt").write_text(TEXT)
    ids = np.array(tokenizer.encode(TEXT))
    inputs, targets = mx.array(ids[:64].reshape(4, 16)), ids[1:65].reshape(4, 16, 1)
    logits = np.array(model(inputs, cache=cache_for(model)).astype(mx.float32)).astype(np.float64)
    logs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    found = json.loads(program("perplexity", "--model", tmp_path, "--data-path", tmp_path / "text.txt", "--sequence-length", 16, "--num-samples", 4, "--json"))
    assert found["tokens"] == 64
    # Logits that agree to d give log-probabilities that agree to 2 d; d is what assert_close allows.
    assert abs(found["nll"] + np.take_along_axis(logs, targets, -1).mean()) <= 2e-4 * np.ptp(logits)
    ran("perplexity", name)


def test_embedded_model(tmp_path):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    ids = token_ids(json.loads((TINY / "config.json").read_text())["vocab_size"], rows=1, length=40)
    assert_close(lquant_logits(tmp_path, ids, "float32"), mlx_lm_logits(tmp_path, ids, mx.float32))


def test_generate_says_what_mlx_lm_says(tmp_path):
    """Greedy decoding in f32, where a tie closer than the two programs' rounding is next to impossible."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    weights = mx.load(str(TINY / "model.safetensors"))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {k: v.astype(mx.float32) for k, v in weights.items()}, metadata={"format": "mlx"})
    model, tokenizer = load(str(tmp_path))
    prompt = "Once upon a time"
    theirs = generate(model, tokenizer, tokenizer.encode(prompt), max_tokens=24)
    assert program("generate", "--model", tmp_path, "-p", prompt, "-m", 24, "--ignore-chat-template", "--verbose", "F") == theirs + "\n"


def test_unknown_family_is_named(tmp_path):
    model, config, *_ = build("llama", seed=1)
    save(tmp_path, model, dict(config, model_type="abacus"))
    (tmp_path / "ids.json").write_text("[[1]]")
    command = [LQUANT, "logits", "--model", tmp_path, "--ids", tmp_path / "ids.json", "--output", tmp_path / "out.safetensors"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert "abacus" in done.stderr and "lquant families" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
