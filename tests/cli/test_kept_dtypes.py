"""Tensors that mlx_lm's cast_predicate leaves in float32, in models of bfloat16: an output has them so too."""

import shutil

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from support import run, same_bytes, tensors, text_rows
from test_convert import mlx_lm_convert
from tiny_models import TINY, build, save


KEPT = {
    "deepseek-v41": ("attn_hc.fn", "sinks", "e_score_correction_bias", "compressor.kv_norm.weight", "compressor.kv_proj.scales"),
    "muse_spark": ("add_attn_alpha", "add_attn_beta", "add_ffn_alpha", "add_ffn_beta"),
}


@pytest.fixture(scope="module", params=KEPT)
def source(request, tmp_path_factory):
    """A model of hyper-connections, sinks, a router's correction and a compressor, and one of factors of the residual, stored as the predicate says."""
    folder = tmp_path_factory.mktemp("kept") / request.param
    model, config, *_ = build(request.param, seed=1, vocab_size=8192)
    stored = [(path, w.astype(mx.bfloat16) if model.cast_predicate(path) else w) for path, w in tree_flatten(model.parameters())]
    model.update(tree_unflatten(stored))
    save(folder, model, dict(config, torch_dtype="bfloat16"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, folder)
    return folder


def test_convert(source, tmp_path):
    run("convert", "--hf-path", source, "-q", "--q-group-size", 32, "--mlx-path", tmp_path / "ours")
    mlx_lm_convert(source, tmp_path / "theirs", quantize=True, q_group_size=32)
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() and all(same_bytes(ours[name], theirs[name]) for name in ours)
    kept = [name for name, w in ours.items() if w.dtype == mx.float32]
    for part in KEPT[source.name]:
        assert any(name.endswith(part) for name in kept), part


@pytest.mark.parametrize("command", ["gptq", "awq"])
def test_methods(source, tmp_path, command):
    rows = text_rows(tmp_path / "rows.jsonl", count=8)
    run(command, "--model", source, "--data-path", rows, "--bits", 4, "--group-size", 32, "--sequence-length", 32, "--mlx-path", tmp_path / "out")
    before, after = tensors(source), tensors(tmp_path / "out")
    kept = {name for name, w in before.items() if w.dtype == mx.float32 and name.removesuffix("weight") + "scales" not in after}
    assert len(kept) >= 12 and all(after[name].dtype == mx.float32 for name in kept)
