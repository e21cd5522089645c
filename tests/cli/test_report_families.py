"""`lquant report` on every kind of model (mixtures of experts, fused linears, heads of their own, Gemma's norms), against the files and mlx_lm's logits."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import utils
from support import dense_weights, encode, log_softmax, quantization, run, sentences, tensors, text_rows
from test_report import Page, numbers_of
from tiny_models import family_folder, mlx_lm_logits

NAMES = [
    "llama-untied-biases",
    "mistral",
    "qwen2-untied-yarn",
    "qwen3",
    "smollm3",
    "phi3",
    "gemma2",
    "gemma3",
    "gemma3-untied-scaled",
    "qwen3-moe",
    "qwen3-moe-unstacked",
    "qwen3-moe-some-dense-raw-probabilities",
]
LENGTH, ROWS, ALONE = 24, 4, 2
SIZES = ("--sequence-length", LENGTH, "--num-samples", ROWS, "--batch-size", 2, "--layer-samples", ALONE)
ROLES = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate",
    "up_proj": "up",
    "gate_up_proj": "gate_up",
    "down_proj": "down",
    "gate": "router",
    "embed_tokens": "embed",
    "lm_head": "head",
}


def role_of(path):
    last = path.rsplit(".", 1)[-1]
    return ("expert_" if "switch_mlp" in path else "") + ROLES[last]


def teacher_of(name, folder):
    """A random model that is not sure of its answers: Gemma 3's embeddings, multiplied by √128 on their way in and tied, would outweigh all blocks."""
    source = family_folder(folder, name, vocab_size=8192)
    if name == "gemma3":
        weights = tensors(source)
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 0.1
        mx.save_safetensors(str(source / "model.safetensors"), weights, metadata={"format": "mlx"})
    return source


def text_file(folder):
    file = folder / "text.txt"
    file.write_text("\n".join(sentences(24, seed=3)))
    return file


def quantized(source, folder):
    """By plain rounding, by a mixed recipe, by gptq."""
    rows = text_rows(folder / "rows.jsonl", count=24)
    run("convert", "--model", source, "-q", "--q-bits", 4, "--mlx-path", folder / "uniform")
    run("convert", "--model", source, "-q", "--q-group-size", 32, "--quant-predicate", "mixed_2_6", "--mlx-path", folder / "mixed")
    run("gptq", "--model", source, "--data-path", rows, "--bits", 3, "--sequence-length", 64, "--mlx-path", folder / "gptq")
    return [folder / name for name in ("uniform", "mixed", "gptq")]


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model(name, tmp_path):
    source = teacher_of(name, tmp_path / "source")
    folders = quantized(source, tmp_path)
    done = run("report", *folders, "--teacher", source, "--data-path", text_file(tmp_path), *SIZES, "--output", tmp_path / "r.html", "--json")
    data, html = json.loads(done.stdout), (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.balanced
    shown = {e["text"] for e in page.all("th") + page.all("td")}
    numbers = numbers_of(page)
    for folder, found in zip(folders, data["folders"], strict=True):
        stored, block = tensors(folder), quantization(folder)
        # Every matrix of the file is a linear of the page, the stacked ones of experts too, with its own bytes and format.
        paths = {n.removesuffix(".weight") for n, t in stored.items() if n.endswith(".weight") and t.ndim > 1}
        linears = {linear["path"]: linear for linear in found["linears"]}
        assert linears.keys() == paths and len(linears) == len(found["linears"])
        for path, linear in linears.items():
            parts = [stored[path + part] for part in (".weight", ".scales", ".biases") if path + part in stored]
            assert linear["bytes"] == sum(part.nbytes for part in parts), path
            assert linear["role"] == role_of(path)
            assert linear["block"] == (int(path.split(".")[2]) if path.startswith("model.layers.") else -1)
            form = block.get(path, block)
            assert (linear["bits"], linear["group_size"], linear["mode"]) == (form["bits"], form["group_size"], form.get("mode", "affine")), path
            assert path in shown
            experts = stored[path + ".weight"].shape[0] if "switch_mlp" in path else None
            assert linear.get("experts") == experts
            assert experts is None or (f"{linear['role']} × {experts}" in shown and f", {experts} experts, {linear['bytes']} bytes</title>" in html)
        assert found["bytes"] == sum(t.nbytes for t in stored.values())
        weights = dense_weights(folder)
        assert found["parameters"] == sum(w.size for w in weights.values())
        # Each is replaced alone, and each does harm.
        alone = {figure["name"]: figure for figure in found["alone"]}
        assert alone.keys() == paths
        assert all(np.isfinite(f["kl"]) and f["kl"] > 0 and np.isfinite(f["kl_se"]) for f in alone.values())
        assert {figure["role"] for figure in alone.values()} == {role_of(path) for path in paths}
        quality = found["quality"]
        assert np.isfinite(quality["kl"]) and quality["kl"] > 0 and quality["tokens"] == LENGTH * ROWS
        assert {float(linear["bytes"]) for linear in linears.values()} | {figure["kl"] for figure in alone.values()} <= numbers
    # Two bits for most cost more than four for all, whatever the model.
    by_name = {found["name"]: found for found in data["folders"]}
    assert by_name["mixed"]["quality"]["kl"] > by_name["uniform"]["quality"]["kl"]
    columns = {role_of(path) for path in paths} - {"embed", "head"}
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        if 'id="f0-size-t"' in svg or 'id="f0-alone-t"' in svg:
            assert all(f">{column}</text>" in svg for column in columns)
            assert svg.count('<g class="cell') >= len(paths)


def divergences(teacher, student):
    """Of each token, in float64 from float32 logits."""
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (teacher, student))
    return (np.exp(p) * (p - q)).sum(-1)


def test_replaced_alone_is_mlx_lms_model_with_one_linear_replaced(tmp_path):
    """Of a mixture of experts with a head of its own, every linear; whole blocks too."""
    source = family_folder(tmp_path / "source", "qwen3-moe-some-dense-raw-probabilities", vocab_size=8192)
    packed, text = tmp_path / "packed", text_file(tmp_path)
    run("convert", "--model", source, "-q", "--quant-predicate", "mixed_2_6", "--mlx-path", packed)
    report = ["report", packed, "--teacher", source, "--data-path", text, *SIZES, "--json", "--output"]
    alone = {f["name"]: f for f in json.loads(run(*report, tmp_path / "linears.html").stdout)["folders"][0]["alone"]}
    blocks = {f["name"]: f for f in json.loads(run(*report, tmp_path / "blocks.html", "--layers", "block").stdout)["folders"][0]["alone"]}

    ids = np.array(encode([text.read_text()])[0][: ALONE * LENGTH]).reshape(ALONE, LENGTH).tolist()
    teacher, weights = mlx_lm_logits(source, ids), dense_weights(packed)
    # Both sides' logits are sums of some hundred f32 products a layer, three blocks deep, in other orders; e is ten times what that has been seen to
    # leave (tiny_models.assert_close allows as much again). KL is to leading order half the variance of the logits' change, so that an error
    # of e in every logit changes it by at most √(2·KL)·2e + e² a token, and its mean, by Jensen, by no more than the mean's.
    e = 1e-5 * np.ptp(teacher)

    def replaced(paths):
        model, _ = utils.load_model(source)
        model.load_weights([(path + ".weight", mx.array(weights[path + ".weight"])) for path in paths], strict=False)
        return divergences(teacher, np.array(model(mx.array(ids)).astype(mx.float32)))

    def agree(figure, paths):
        kl = replaced(paths)
        assert figure["kl"] == pytest.approx(kl.mean(), abs=2 * e * np.sqrt(2 * kl.mean()) + e * e), figure["name"]

    assert len(alone) == 1 + 1 + 2 * 8 + 7 and {"lm_head", "model.embed_tokens", "model.layers.1.mlp.down_proj"} <= alone.keys()
    for name, figure in alone.items():
        agree(figure, [name])
    assert blocks.keys() == {"lm_head", "model.embed_tokens", "block 0", "block 1", "block 2"}
    for i in range(3):
        agree(blocks[f"block {i}"], [path for path in alone if path.startswith(f"model.layers.{i}.")])
