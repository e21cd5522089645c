"""Every method on models of each dtype with MLX's own operations, as on a GPU without kernels of ours: float16 stays float16 there."""

import json
import math
import shutil

import mlx.core as mx
import numpy as np
import pytest
from support import dense_weights, run, sentences, tensors, text_rows
from tiny_models import family_folder, mlx_lm_logits, token_ids

ON_MLX = dict(LQUANT_KERNELS="mlx")
DTYPES = ["float32", "bfloat16", "float16"]
FAMILIES = ["llama", "qwen3-moe", "gemma3"]
SMALL = dict(vocab_size=8192, num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
# mlx_lm's Gemma 3 needs both of its kinds of layers.
OWN = {"llama": {}, "qwen3-moe": dict(num_experts=4, moe_intermediate_size=32), "gemma3": dict(num_hidden_layers=2)}
LENGTH = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = folder / "text.txt"
    text.write_text(" ".join(sentences(10, seed=50)))
    return text_rows(folder / "rows.jsonl", count=24), text


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By family: the same random numbers stored in each dtype, with embeddings small enough that the model is not sure of its answers."""
    made = {}
    for family in FAMILIES:
        for dtype in DTYPES:
            folder = tmp_path_factory.mktemp(family) / dtype
            family_folder(folder, family, **dict(SMALL, **OWN[family]), torch_dtype=dtype)
            weights = tensors(folder)
            weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 0.25
            weights = {name: w.astype(getattr(mx, dtype)) for name, w in weights.items()}
            mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
            made[family, dtype] = folder
    return made


def perplexity(model, text, environment=ON_MLX, teacher=None):
    arguments = ["perplexity", "--model", model, "--data-path", text, "--sequence-length", LENGTH, "--num-samples", 6, "--json"]
    if teacher is not None:
        arguments += ["--teacher", teacher]
    figures = json.loads(run(*arguments, environment=environment).stdout)
    assert all(math.isfinite(value) for value in figures.values() if isinstance(value, (int, float)))
    return figures


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_the_cpus_kernels(models, data, family, dtype):
    """Of the same numbers in float32; in float16 those would compute in float32 anyway."""
    model, text = models[family, dtype], data[1]
    ours, exact = perplexity(model, text), perplexity(models[family, "float32"], text, environment=dict(LQUANT_KERNELS=""))
    assert ours["tokens"] == exact["tokens"] > 100
    # Weights and some ten tensors a block are rounded: as errors of random signs they move a logit of about 3 by 2·√20 ≈ 9 units of it, −log p by
    # twice that, and the mean over more than 100 tokens by a tenth of it, 6 units. Three times as many are far below what a fault would do.
    unit = dict(float32=2**-24, bfloat16=2**-8, float16=2**-11)[dtype]
    assert abs(ours["nll"] - exact["nll"]) < 18 * unit + 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gemma3"])  # MLX's CPU backend has no mixtures of experts in 16 bits, for mlx_lm
def test_logits_are_mlx_lms(models, tmp_path, family, dtype):
    """The same operations in the same dtype, and no wider one."""
    model, ids = models[family, dtype], token_ids(8192, length=12)
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    run("logits", "--model", model, "--ids", tmp_path / "ids.json", "--output", tmp_path / "logits.safetensors", environment=ON_MLX)
    ours, theirs = np.array(mx.load(str(tmp_path / "logits.safetensors"))["logits"]), mlx_lm_logits(model, ids)
    # Two blocks round some ten tensors each: √20 units of a logit, twice for the two programs' own places.
    unit = dict(float32=100 * 2**-24, bfloat16=2**-8, float16=2**-11)[dtype]
    assert np.linalg.norm(ours - theirs) < 2 * math.sqrt(20) * unit * np.linalg.norm(theirs)
    stored = mx.array(ours).astype(getattr(mx, dtype)).astype(mx.float32)
    assert (np.array(stored) == ours).all()


def test_what_leaves_the_range_of_float16_is_refused(models, data, tmp_path):
    """Embeddings that float16 holds, but not what the head makes of them: logits beyond 65504. In float32 the same numbers are a model."""
    model, (rows, text) = models["llama", "float16"], data
    large, wide = tmp_path / "large", tmp_path / "wide"
    shutil.copytree(model, large)
    weights = tensors(large)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 20000
    mx.save_safetensors(str(large / "model.safetensors"), weights, metadata={"format": "mlx"})
    scored = ["--data-path", text, "--sequence-length", LENGTH, "--num-samples", 6]
    done = run("perplexity", "--model", large, *scored, environment=ON_MLX, code=1)
    assert f"{large}: its log-probabilities are not numbers" in done.stderr and "too large for float16" in done.stderr
    done = run("perplexity", "--model", model, "--teacher", large, *scored, environment=ON_MLX, code=1)
    assert f"{large}: its log-probabilities are not numbers" in done.stderr
    arguments = ["dwq", "--data-path", rows, "--group-size", 32, "--num-samples", 8, "--num-valid", 4, "--max-seq-length", LENGTH, "--mlx-path", tmp_path / "dwq"]
    done = run(*arguments, "--model", large, environment=ON_MLX, code=1)
    assert "make the model float32 first" in done.stderr and not (tmp_path / "dwq").exists()
    run("convert", "--model", large, "--dtype", "float32", "--mlx-path", wide)
    assert math.isfinite(json.loads(run("perplexity", "--model", wide, *scored, "--json", environment=ON_MLX).stdout)["nll"])


def test_other_kernels_are_not_known(models):
    done = run("generate", "--model", models["llama", "float16"], "--max-tokens", 1, environment=dict(LQUANT_KERNELS="fast"), code=2)
    assert "LQUANT_KERNELS=fast is not known; set it to mlx" in done.stderr


def finite(folder, dtype):
    """What was written: weights that are numbers, scales of the model's own dtype."""
    assert all(np.isfinite(w).all() for w in dense_weights(folder).values())
    assert {str(t.dtype).removeprefix("mlx.core.") for t in tensors(folder).values()} == {"uint32", dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_runs(models, data, tmp_path, family, dtype):
    model, (rows, text) = models[family, dtype], data
    common = ["--model", model, "--data-path", rows, "--group-size", 32]
    methods = {
        "dwq": ["--bits", 3, "--num-samples", 8, "--num-valid", 4, "--batch-size", 4, "--max-seq-length", LENGTH],
        "gptq": ["--bits", 3, "--fallback-group-size", 32, "--sweeps", 1, "--num-samples", 8, "--sequence-length", LENGTH, "--train-blocks", 1],
        "awq": ["--bits", 3, "--num-samples", 4, "--sequence-length", LENGTH, "--n-grid", 2],
    }
    for method, arguments in methods.items():
        folder = tmp_path / method
        json.loads(run(method, *common, *arguments, "--mlx-path", folder, "--json", environment=ON_MLX).stdout)
        finite(folder, dtype)
        assert 0 < perplexity(folder, text, teacher=model)["kl"] < 1, method
    dynamic = ["--low-group-size", 32, "--high-group-size", 32, "--num-samples", 4, "--sequence-length", LENGTH, "--mlx-path", tmp_path / "dynamic"]
    bits = 6.5 if dtype == "float32" else 5.5  # 4 and 5 of the codes, and two numbers a group of 32
    arguments = ["dynamic_quant", "--model", model, "--data-path", rows, *dynamic, "--target-bpw", bits, "--json"]
    assert bits - 0.5 <= json.loads(run(*arguments, environment=ON_MLX, cwd=tmp_path).stdout)["bits_per_weight"] <= bits
    finite(tmp_path / "dynamic", dtype)
    said = run("generate", "--model", model, "--prompt", "the old river", "--max-tokens", 4, environment=ON_MLX).stdout
    assert said.strip()
