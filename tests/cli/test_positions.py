"""Models with an embedding of positions: it is written wherever the embedding of tokens is, and bounds what they read."""

import mlx.core as mx
import pytest
import tiny_models
from support import encode, quantization, run, sentences, tensors, text_rows

POSITIONS = 64


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_models.family_folder(tmp_path_factory.mktemp("source") / "gpt2", "gpt2", vocab_size=8192, n_layer=2, n_positions=POSITIONS, n_ctx=POSITIONS)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return text_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", count=24)


def written_and_read(folder):
    assert "model.wpe.weight" in tensors(folder)
    ids = [ids[:24] for ids in encode(sentences(2, seed=1000, words=30))]
    tiny_models.assert_close(tiny_models.lquant_logits(folder, ids, "float32"), tiny_models.mlx_lm_logits(folder, ids, mx.float32))


def test_every_method_writes_them(source, rows, tmp_path):
    short = ["--sequence-length", POSITIONS, "--num-samples", 16]
    run("awq", "--model", source, "--data-path", rows, "--mlx-path", tmp_path / "awq", "--group-size", 32, "--n-grid", 2, *short)
    run("gptq", "--model", source, "--data-path", rows, "--mlx-path", tmp_path / "gptq", "--bits", 4, "--group-size", 32, *short)
    run("dynamic_quant", "--model", source, "--data-path", rows, "--mlx-path", tmp_path / "dynamic", "--target-bpw", 5.5, *short, cwd=tmp_path)
    counts = ["--num-samples", 16, "--num-valid", 4, "--batch-size", 4]
    run("dwq", "--model", source, "--data-path", rows, "--mlx-path", tmp_path / "dwq", "--bits", 4, "--group-size", 32, "--max-seq-length", POSITIONS, *counts)
    run("convert", "--hf-path", tmp_path / "gptq", "-d", "--mlx-path", tmp_path / "dense")
    for name in ("awq", "gptq", "dynamic", "dwq", "dense"):
        written_and_read(tmp_path / name)
    assert "model.wpe.scales" in tensors(tmp_path / "gptq") and "model.wpe" in quantization(tmp_path / "dynamic")
    run("report", tmp_path / "gptq", "--teacher", source, "--data-path", rows, "--sequence-length", POSITIONS, "--num-samples", 8, "--output", tmp_path / "page.html")
    assert "model.wpe" in (tmp_path / "page.html").read_text()


def test_longer_rows_are_refused(source, rows, tmp_path):
    def refused(*arguments, flag="--sequence-length"):
        done = run(*arguments, code=1, cwd=tmp_path)
        assert done.stderr.endswith(f"rows of 65 tokens are longer than the 64 positions that the model knows; give {flag} 64 or less\n")

    long = ["--sequence-length", 65]
    for command in ("awq", "gptq", "dynamic_quant", "auto"):
        refused(command, "--model", source, "--data-path", rows, "--mlx-path", "out", *long)
    refused("dwq", "--model", source, "--data-path", rows, "--mlx-path", "out", "--max-seq-length", 65, flag="--max-seq-length")
    refused("perplexity", "--model", source, "--data-path", rows, *long)
    said = run("generate", "--model", source, "-p", "the river", "-m", 80, "--ignore-chat-template", code=1, cwd=tmp_path).stderr
    assert "80 to generate are more than the 64 positions that the model knows; give a shorter prompt, or --max-tokens" in said
    (tmp_path / "ids.json").write_text(str([[1] * 65]))
    said = run("logits", "--model", source, "--ids", "ids.json", "--output", "out.safetensors", code=1, cwd=tmp_path).stderr
    assert "lists of 65 tokens are longer than the 64 positions" in said
    assert sorted(f.name for f in tmp_path.iterdir()) == ["ids.json"]
