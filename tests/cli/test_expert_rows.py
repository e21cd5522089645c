"""Rows of mixtures: those that reach starved experts come in, for all methods that calibrate; nothing else changes."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
import tiny_models
from support import encode, run, tree, write_rows

SMALL = ["--num-samples", 16, "--sequence-length", 32]
GPTQ = ["gptq", "--bits", 3, "--group-size", 32]
COMMON, RARE = "the of and a", "river stone winter light bread grows letter quietly house under"


def texts(words, count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words.split(), 24)) for _ in range(count)]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture, and rows few of which are about what most of its experts are for."""
    folder = tmp_path_factory.mktemp("mixture")
    model = tiny_models.family_folder(folder / "model", "qwen3-moe", seed=4, vocab_size=8192, num_hidden_layers=2, num_experts=16)
    rows = [{"text": text} for text in texts(COMMON, 56, 0) + texts(RARE, 8, 1)]
    return model, write_rows(folder / "rows.jsonl", [rows[i] for i in np.random.default_rng(2).permutation(len(rows))])


def below(done):
    """What was said of the experts with too few tokens: before, of how many, after."""
    (found,) = below_of(done.stderr)
    return found


def below_of(said):
    lines = re.findall(r"experts with fewer than \d+ tokens: (\d+) of (\d+), and (\d+) after \d+ of 16 rows were exchanged", said)
    return [[int(n) for n in line] for line in lines]


def test_starved_experts_see_more_and_unseen_rows_lose_less(mixture, tmp_path):
    model, rows = mixture
    options = [*GPTQ, "--model", model, "--data-path", rows, *SMALL]
    done = run(*options, "--mlx-path", tmp_path / "exchanged")
    before, experts, after = below(done)
    assert experts == 2 * 16 and after < before
    figures = json.loads((tmp_path / "exchanged" / "lquant.json").read_text())["data"]
    assert figures["rows"] == 16 and figures["expert_tokens"] == "auto"
    assert figures["experts_below"]["before"] == before and figures["experts_below"]["after"] == after
    plain = run(*options, "--expert-tokens", 0, "--mlx-path", tmp_path / "drawn")
    assert "experts with fewer" not in plain.stderr
    assert "expert" not in str(json.loads((tmp_path / "drawn" / "lquant.json").read_text())["data"])
    starved = [sum(int(n) for n in re.findall(r"(\d+) of 16 experts saw fewer than", said.stderr)) for said in (done, plain)]
    assert starved[0] < starved[1]

    ids = [ids[:24] for ids in encode(texts(COMMON, 8, 3) + texts(RARE, 8, 4))]
    exact, *found = (tiny_models.mlx_lm_logits(f, ids, mx.float32) for f in (model, tmp_path / "exchanged", tmp_path / "drawn"))
    exchanged, drawn = (np.square(logits - exact).mean() for logits in found)
    assert exchanged < drawn


def test_every_method_that_calibrates(mixture, tmp_path):
    """And sensitivities belong to the rows that they were taken on."""
    model, rows = mixture
    common = ["--model", model, "--data-path", rows, *SMALL, "--expert-tokens"]
    sensitivities = tmp_path / "model_sensitivities.lquant.json"
    for options in (
        ["awq", "--group-size", 32, "--n-grid", 2, "--no-clip", "--mlx-path", tmp_path / "awq"],
        ["dynamic_quant", "--plan-only", tmp_path / "plan.json"],
        ["dynamic_quant", "--plan-only", tmp_path / "again.json", "--sensitivities", sensitivities],
        ["auto", "--steps", "gptq", "--target-bpw", 4, "--mlx-path", tmp_path / "auto"],
    ):
        before, _, after = below(run(*options, *common, 32, cwd=tmp_path))
        assert after < before, options
    record = json.loads((tmp_path / "auto" / "lquant.json").read_text())
    assert record["options"]["expert_tokens"] == 32 and record["data"]["experts_below"]["after"] == after
    options = ["dynamic_quant", *common, 16, "--plan-only", tmp_path / "other.json", "--sensitivities", sensitivities]
    assert "other calibration data" in run(*options, code=1, cwd=tmp_path).stderr


def test_what_follows_awq_has_its_rows(mixture, tmp_path):
    """Experts' tokens are counted once, and the result is that of the two commands one after the other; with another number of rows, twice."""
    model, rows = mixture
    common = ["--model", model, "--data-path", rows, *SMALL, "--expert-tokens", 32]
    awq = ["awq", "--bits", 3, "--group-size", 32, "--embed-bits", 6, "--embed-group-size", 64, "--n-grid", 2, *common]
    said = run(*awq, "--then", "gptq", "--mlx-path", tmp_path / "both").stderr
    ((before, _, after),) = below_of(said)
    assert after < before
    run(*awq, "--mlx-path", tmp_path / "awq")
    run(*GPTQ, *common, "--scales", tmp_path / "awq", "--mlx-path", tmp_path / "apart")
    assert tree(tmp_path / "both") == tree(tmp_path / "apart")
    said = run(*awq, "--then", "gptq", "--then-samples", 12, "--mlx-path", tmp_path / "fewer").stderr
    assert len(re.findall("experts with fewer than", said)) == 2


def test_where_no_row_can_be_exchanged_nothing_changes(mixture, model, rows, tmp_path):
    """All rows are taken, or the model is no mixture: the bytes are those of no exchange."""
    few = ["--num-samples", 16, "--sequence-length", 16]
    whole = ["--num-samples", 64, "--sequence-length", 16]
    for source, data, sizes in ((*mixture, whole), (model, rows, few)):
        results = [tmp_path / f"{source.parent.name}-{floor}" for floor in (0, 32)]
        for floor, result in zip((0, 32), results):
            run(*GPTQ, "--model", source, "--data-path", data, *sizes, "--expert-tokens", floor, "--mlx-path", result)
        assert tree(results[0]) == tree(results[1])
