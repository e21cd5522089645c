"""`lquant dwq` on every op and topology; what it writes, and its options, are in test_outputs.py."""

import json

import families
import mlx.core as mx
import numpy as np
import pytest
import tiny_models
from support import encode, quantization, run, sentences, text_rows


@pytest.mark.parametrize("name", families.REPRESENTATIVES)
def test_every_op_and_topology(name, tmp_path, ran):
    """What is written is what mlx_lm computes with, and its logits are nearer to the original's than those of plain rounding."""
    source = tiny_models.representative(tmp_path / "source", name)
    rows = text_rows(tmp_path / "rows.jsonl", count=24)
    sizes = ["--num-samples", 16, "--num-valid", 4, "--batch-size", 4, "--max-seq-length", 24]
    run("dwq", "--model", source, "--data-path", rows, "--bits", 3, "--group-size", 32, *sizes, "--mlx-path", tmp_path / "dwq")
    plan = {path: form for path, form in quantization(tmp_path / "dwq").items() if isinstance(form, dict)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run("convert", "--hf-path", source, "-q", "--q-bits", 3, "--q-group-size", 32, "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "plain")
    ids = [ids[:24] for ids in encode(sentences(4, seed=1000, words=30))]
    exact, found, plain = (tiny_models.mlx_lm_logits(f, ids, mx.float32) for f in (source, tmp_path / "dwq", tmp_path / "plain"))
    tiny_models.assert_close(tiny_models.lquant_logits(tmp_path / "dwq", ids, "float32"), found)
    assert np.square(found - exact).mean() < np.square(plain - exact).mean()
    ran("dwq", name)
