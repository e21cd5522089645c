"""`lquant dynamic_quant`: what it writes, what it predicts, whose files it reads, and what it refuses."""

import json
import math
import os
import re
import subprocess
import time

import families
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny_models
from mlx_lm.quant import dynamic_quant as original
from mlx_lm.utils import compute_bits_per_weight
from support import ENVIRONMENT, LQUANT, encode, kl, quantization, random_model, run, sentences, tensors, text_rows, tree

ROWS = ["--sequence-length", 64]


@pytest.fixture(scope="module")
def quantized(model, rows, tmp_path_factory):
    """The command as mlx_lm's is called: from a folder of its own, for its files of sensitivities go where it is called."""
    folder = tmp_path_factory.mktemp("dynamic")
    done = run("dynamic_quant", "--model", model, "--data-path", rows, "--mlx-path", folder / "result", *ROWS, "--json", "--report-ppl", cwd=folder)
    return folder, json.loads(done.stdout), done.stderr


def bits_of(folder):
    block = quantization(folder)
    return {path: form["bits"] for path, form in block.items() if isinstance(form, dict)}, block["bits"]


def test_mlx_lm_loads_it_with_its_layers_own_formats(quantized, model):
    folder, figures, said = quantized
    loaded, tokenizer = mlx_lm.load(str(folder / "result"))
    assert mlx_lm.generate(loaded, tokenizer, "the old river", max_tokens=4)
    assert compute_bits_per_weight(loaded) == pytest.approx(figures["bits_per_weight"], abs=1e-9)
    assert figures["bits_per_weight"] <= 5
    own, base = bits_of(folder / "result")
    assert base == 4 and set(own.values()) == {5}
    assert loaded.model.layers[0].self_attn.q_proj.bits in (4, 5)
    assert "with these widths the model has 4." in said and "predicted" in said
    plan = json.loads((folder / "result" / "plan.json").read_text())
    linears = {name.removesuffix(".scales") for name in tensors(folder / "result") if name.endswith(".scales")}
    assert linears <= plan.keys() and {path: f["bits"] for path, f in plan.items() if path in own} == own


def test_mlx_lms_perplexity_is_ours(quantized, tmp_path):
    """Both in f32: in bf16 each program rounds at other places, and by how much depends on the machine."""
    run("convert", "--model", quantized[0] / "result", "--dtype", "float32", "--mlx-path", tmp_path / "f32")
    text = " ".join(sentences(40, seed=77))
    (tmp_path / "text.txt").write_text(text)
    ours = json.loads(run("perplexity", "--model", tmp_path / "f32", "--data-path", tmp_path / "text.txt", "--sequence-length", 64, "--num-samples", 4, "--json").stdout)
    loaded, tokenizer = mlx_lm.load(str(tmp_path / "f32"))
    ids = encode([text])[0][: 4 * 64 + 1]
    # Rows of 64 tokens, each with the token behind it as its last target: ours keeps every token as a target once.
    batch = mx.array([ids[64 * i : 64 * i + 65] for i in range(4)])
    theirs = original.eval_ppl(loaded, batch)
    # Two blocks of sums over at most 256 terms: each of some ten products in a row has a relative error of √256·2^-24, of logits below 16.
    assert math.log(theirs) == pytest.approx(math.log(ours["perplexity"]), abs=16 * 20 * 16 * 2**-24)


def test_prediction_and_measurement_are_told_and_near(quantized):
    figures = quantized[1]
    assert figures["kl"] > 0 and figures["predicted_kl"] > 0
    # Second order, on 80 short rows: a factor of two is what it promises.
    assert 0.5 < figures["kl"] / figures["predicted_kl"] < 2


def sensitivity_files(folder):
    (pairs,) = folder.glob("*_sensitivities.json")
    (full,) = folder.glob("*_sensitivities.lquant.json")
    return pairs, full


def test_both_files_of_sensitivities(quantized, model):
    folder = quantized[0]
    pairs, full = sensitivity_files(folder)
    assert (pairs.name, full.name) == (f"{model.name}_sensitivities.json", f"{model.name}_sensitivities.lquant.json")
    assert f"written to {full}, and as mlx_lm has them to {pairs.name}\n" in quantized[2]
    listed = json.loads(pairs.read_text())
    assert all(isinstance(path, str) and isinstance(value, float) for path, value in listed)
    weights = {name.removesuffix(".weight"): t for name, t in tensors(model).items() if t.ndim == 2}
    assert {path for path, _ in listed} == set(weights)
    whole = json.loads(full.read_text())
    forms = [(f["bits"], f["group_size"]) for f in whole["formats"]]
    assert set(forms) == {(b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)}
    low, high = forms.index((4, 64)), forms.index((5, 64))
    for path, value in listed:
        costs = whole["kl"][path]
        assert value == pytest.approx((costs[low] - costs[high]) / (weights[path].size / 1e6), rel=1e-6)
        assert costs[forms.index((2, 64))] > costs[low] > costs[forms.index((8, 64))] > 0
    assert whole["data"]["files"][0]["file"] == "rows.jsonl" and len(whole["model"]) == 64


def plan_by(model, rows, output, *arguments, **options):
    run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", output, *arguments, **options)
    return json.loads(output.read_text())


def test_one_measurement_serves_every_budget(quantized, model, rows, tmp_path):
    pairs, full = sensitivity_files(quantized[0])
    sizes = []
    for bits in (2.6, 3.3, 4.1, 5.2, 6.5):
        done = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", tmp_path / f"{bits}.json", "--sensitivities", pairs, "--widths", 2, 3,
                   4, 5, 6, 8, "--target-bpw", bits, "--json", "--pareto", tmp_path / "curve.json")
        figures = json.loads(done.stdout)
        assert bits - 0.15 < figures["bits_per_weight"] <= bits and figures["predicted_gap"] == 0
        sizes.append((figures["bits_per_weight"], figures["predicted_kl"]))
        assert "finding sensitivities" not in done.stderr
    assert [k for _, k in sizes] == sorted((k for _, k in sizes), reverse=True)
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert all(a["bytes"] < b["bytes"] and a["predicted_kl"] > b["predicted_kl"] for a, b in zip(curve, curve[1:]))
    # Every budget's plan lies on the curve or between two of its points.
    for bits, loss in sizes:
        smaller = [p["predicted_kl"] for p in curve if p["bits_per_weight"] <= bits]
        larger = [p["predicted_kl"] for p in curve if p["bits_per_weight"] >= bits]
        assert larger[0] - 1e-12 <= loss <= smaller[-1] + 1e-12


def test_targets_by_size_and_by_divergence(quantized, model, rows, tmp_path):
    pairs, _ = sensitivity_files(quantized[0])
    free = ["--sensitivities", pairs, "--widths", 2, 3, 4, 5, 6, 8, "--json"]
    by_size = json.loads(run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", tmp_path / "a.json", *free, "--target-size", "0.6MB").stdout)
    assert 0.59e6 < by_size["bytes"] <= 0.6e6
    by_kl = json.loads(run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", tmp_path / "b.json", *free, "--max-kl", by_size["predicted_kl"]).stdout)
    assert by_kl["bytes"] <= by_size["bytes"] and by_kl["predicted_kl"] <= by_size["predicted_kl"]


def test_ties_floors_and_ceilings(quantized, model, rows, tmp_path):
    pairs, _ = sensitivity_files(quantized[0])
    free = ["--sensitivities", pairs, "--widths", 2, 3, 4, 6, "--target-bpw", 3.5]
    tied = plan_by(model, rows, tmp_path / "tied.json", *free, "--tie")
    for i in range(2):
        for alike in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({json.dumps(tied[f"model.layers.{i}.{name}"]) for name in alike}) == 1
    bound = plan_by(model, rows, tmp_path / "bound.json", *free, "--floor", "*.down_proj=6", "--ceiling", "model.embed_tokens=3")
    assert all(form["bits"] >= 6 for path, form in bound.items() if path.endswith("down_proj"))
    assert bound["model.embed_tokens"]["bits"] <= 3
    said = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", tmp_path / "x", *free, "--floor", "*.nothing=4", code=1).stderr
    assert "--floor *.nothing=4: no linear of the model has such a path" in said
    said = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", tmp_path / "x", *free, "--floor", "*=5", "--ceiling", "*=4", code=1).stderr
    assert "leave it no format" in said
    said = run("dynamic_quant", "--model", model, "--plan-only", tmp_path / "x", "--floor", "4", code=2).stderr
    assert "--floor 4 is not PATTERN=BITS" in said
    assert not (tmp_path / "x").exists()


def test_the_plan_means_the_same_to_every_command(quantized, model, rows, tmp_path):
    plan = quantized[0] / "result" / "plan.json"
    wanted = {name: (t.shape, t.dtype) for name, t in tensors(quantized[0] / "result").items()}
    for command in (["convert", "-q", "--q-bits", 3], ["gptq", "--bits", 2, "--data-path", rows, "--num-samples", 8, *ROWS],
                    ["awq", "--data-path", rows, "--num-samples", 8, "--n-grid", 1, *ROWS],
                    ["dwq", "--bits", 8, "--data-path", rows, "--num-samples", 8, "--num-valid", 8, "--max-seq-length", 64]):
        output = tmp_path / command[0]
        run(command[0], "--model", model, "--plan", plan, "--mlx-path", output, *command[1:])
        assert {name: (t.shape, t.dtype) for name, t in tensors(output).items()} == wanted, command[0]


def peer_values(model):
    """Sensitivities as mlx_lm finds them, by its own function."""
    loaded, _ = mlx_lm.load(str(model))
    ids = [i[:32] for i in encode(sentences(4, seed=5, words=40))]
    return loaded, original.estimate_sensitivities(loaded, mx.array(ids), 4, 64, 5, 64)


def test_a_file_of_mlx_lm_is_read_and_its_rule_can_be_followed(model, rows, tmp_path):
    loaded, values = peer_values(model)
    file = tmp_path / "peer_sensitivities.json"
    file.write_text(json.dumps(values))
    arguments = ["dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--sensitivities", file, "--target-bpw", 4.75]
    run(*arguments, "--rule", "threshold", "--plan-only", tmp_path / "threshold.json")
    threshold = original.estimate_threshold(loaded, dict(values), 4.75, 4, 64, 5, 64)
    theirs = {path: 5 if value > threshold else 4 for path, value in values}
    found = json.loads((tmp_path / "threshold.json").read_text())
    assert {path: found[path]["bits"] for path in theirs} == theirs
    # With the same values the exact choice in as many bytes is never predicted to be worse.
    by_rule = json.loads(run(*arguments, "--rule", "threshold", "--plan-only", tmp_path / "a", "--json").stdout)
    exact = json.loads(run(*arguments[:-1], by_rule["bits_per_weight"], "--plan-only", tmp_path / "b", "--json").stdout)
    assert exact["bytes"] <= by_rule["bytes"] and exact["predicted_kl"] <= by_rule["predicted_kl"] * (1 + 1e-12)


def test_measured_sensitivities_are_kept_for_the_next_run(model, rows, tmp_path):
    arguments = ["--model", model, "--data-path", rows, *ROWS, "--num-samples", 24, "--widths", 2, 3, 4]
    first = run("dynamic_quant", *arguments, "--measure", "--plan-only", tmp_path / "a.json", "--target-bpw", 3, cwd=tmp_path)
    assert "measuring sensitivities: done" in first.stderr
    pairs, full = sensitivity_files(tmp_path)
    assert json.loads(full.read_text())["measured"] is True
    again = run("dynamic_quant", *arguments, "--measure", "--plan-only", tmp_path / "b.json", "--target-bpw", 3, "--sensitivities", pairs)
    assert "measuring" not in again.stderr and (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


REFUSALS = [
    (["--target-bpw", 6], 1, "a target of 6 bits per weight is out of reach: with these --low-bits and --high-bits the model has 4."),
    (["--target-bpw", 3], 1, "a target of 3 bits per weight is too little"),
    (["--target-size", "1KB"], 1, "1.00 kB is too little"),
    (["--target-size", "many"], 2, "--target-size many is no size"),
    (["--target-bpw", 4.5, "--target-size", "1MB"], 2, "--target-bpw excludes --target-size"),
    (["--low-bits", 5, "--high-bits", 4], 2, "is no more precise than --low-bits 5"),
    (["--low-bits", 7], 1, "7"),
    (["--max-kl", 1e-9], 1, "allow more"),
    (["--rule", "threshold", "--widths", 3, 4], 2, "--rule threshold chooses between"),
    (["--widths", 3, "--group-sizes", 48], 1, "48"),
    (["--sensitivities", "missing.json"], 1, "missing.json"),
    (["--rule", "best"], 2, "--rule"),
]


@pytest.mark.parametrize("wish, code, sentence", REFUSALS, ids=[" ".join(map(str, r[0])) for r in REFUSALS])
def test_refusals(quantized, model, rows, tmp_path, wish, code, sentence):
    given = [] if "--sensitivities" in wish else ["--sensitivities", sensitivity_files(quantized[0])[0]]
    done = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--mlx-path", tmp_path / "out", *given, *wish, code=code, cwd=tmp_path)
    assert sentence in done.stderr and len(done.stderr.strip().split("\n")[-1]) < 400
    assert not (tmp_path / "out").exists()


def test_files_that_do_not_match_are_refused(quantized, model, rows, tmp_path):
    pairs, full = sensitivity_files(quantized[0])
    arguments = ["dynamic_quant", "--plan-only", tmp_path / "x", *ROWS]
    other = random_model(tmp_path / "other", seed=1)
    assert "was made of another model" in run(*arguments, "--model", other, "--data-path", rows, "--sensitivities", pairs, code=1).stderr
    fewer = text_rows(tmp_path / "rows.jsonl", count=50, seed=9)
    assert "was made on other calibration data" in run(*arguments, "--model", model, "--data-path", fewer, "--sensitivities", full, code=1).stderr
    # mlx_lm's own form alone knows two widths.
    (tmp_path / "alone_sensitivities.json").write_text(pairs.read_text())
    said = run(*arguments, "--model", model, "--data-path", rows, "--sensitivities", tmp_path / "alone_sensitivities.json", "--widths", 3, 4, code=1).stderr
    assert "says nothing of" in said and "3 bits with groups of" in said


def change(value, at, to):
    """Another value at a place, or none."""
    value = json.loads(json.dumps(value))
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    if to is None:
        del inner[at[-1]]
    else:
        inner[at[-1]] = to
    return value


DOWN = "model.layers.0.mlp.down_proj"
# A place in the file, what stands there instead, and what is said of it.
FAULTS_OF_PAIRS = [
    ([2], ["a"], '"[2]" is ["a"], not a [path, value] pair'),
    ([2], 5, '"[2]" is 5, not a list'),
    ([2, 0], 7, '"[2][0]" is 7, not a text'),
    ([2, 1], "x" * 100_000, " … xxx"),
    ([2, 1], 1e300, '"[2][1]" is 1e+300, not a value that f32 can hold'),
    ([2, 1], float("nan"), "not valid JSON (line 1, column "),
    ([2, 0], "model.embed_tokens", '" names a linear for the second time'),
]
FAULTS = [
    (["model"], None, '"model" is missing'),
    (["model"], 3, '"model" is 3, not a text'),
    (["tokens"], -1, '"tokens" is -1, not a whole number from 0'),
    (["measured"], 1, '"measured" is 1, not true or false'),
    (["formats", 1], 4, '"formats[1]" is 4, not an object'),
    (["formats", 1, "mode"], "a" * 100_000, "not an affine format of 2, 3, 4, 5, 6 or 8 bits"),
    (["formats", 1, "bits"], 1 << 40, '"formats[1].bits" is 1099511627776, not a whole number from 2 to 8'),
    (["formats", 1, "group_size"], 48, "not an affine format"),
    (["kl"], [1], '"kl" is [1], not an object'),
    (["kl", DOWN], 1, f'"kl.{DOWN}" is 1, not a list'),
    (["kl", DOWN], [1, 2], f'"kl.{DOWN}" has 2 costs where the file has 18 formats'),
    (["kl", DOWN, 4], -1e-3, f'"kl.{DOWN}[4]" is -0.001, not a divergence'),
    (["kl", DOWN, 4], 1e300, f'"kl.{DOWN}[4]" is 1e+300, not a divergence'),
    (["kl", DOWN, 4], "x", f'"kl.{DOWN}[4]" is "x", not a number'),
    (["kl", DOWN], None, f"says nothing of {DOWN} in 4 bits with groups of 64"),
    (["kl", "a" * 100_000], [0] * 18, "is no linear of the model"),
]


@pytest.mark.parametrize("which, fault", [(0, f) for f in FAULTS_OF_PAIRS] + [(1, f) for f in FAULTS], ids=lambda v: None if isinstance(v, int) else str(v[2])[:40])
def test_a_fault_in_a_file_is_told_with_its_place(quantized, model, rows, tmp_path, which, fault):
    at, to, sentence = fault
    (tmp_path / "broken.json").write_text(json.dumps(change(json.loads(sensitivity_files(quantized[0])[which].read_text()), at, to)))
    refused_file(model, rows, tmp_path / "broken.json", sentence)


def refused_file(model, rows, file, sentence):
    done = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--plan-only", file.parent / "plan", "--sensitivities", file, code=1)
    assert done.stderr.startswith(f"lquant: [pipeline] {file}: ") and sentence in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 500 + len(str(file)) and "json.exception" not in done.stderr


@pytest.mark.parametrize("text, sentence", [("{", "not valid JSON (line 1, column 2)"), ("5", "is 5, not a list of [path, value] pairs"), ("[" * 300, "nested more than 200 deep")])
def test_what_is_no_file_of_sensitivities_is_refused(model, rows, tmp_path, text, sentence):
    (tmp_path / "broken.json").write_text(text)
    refused_file(model, rows, tmp_path / "broken.json", sentence)


def test_a_pipe_is_not_waited_for(model, rows, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    refused_file(model, rows, tmp_path / "pipe.json", "is no regular file")


def test_files_are_named_by_the_model_and_never_hidden(quantized, model, rows, tmp_path):
    """By a path with dots, slashes and links; a file of this model is replaced."""
    (tmp_path / ".kept").symlink_to(model)
    (tmp_path / "kept_sensitivities.json").write_text(sensitivity_files(quantized[0])[0].read_text())
    arguments = ["--data-path", rows, *ROWS, "--plan-only", "plan.json"]
    said = run("dynamic_quant", "--model", "./.kept/", *arguments, cwd=tmp_path).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [".kept", "kept_sensitivities.json", "kept_sensitivities.lquant.json", "plan.json"]
    assert f"{tmp_path}/kept_sensitivities.lquant.json" in said
    assert json.loads((tmp_path / "kept_sensitivities.json").read_text()) == json.loads(sensitivity_files(quantized[0])[0].read_text())


@pytest.mark.parametrize("suffix", ["sensitivities.json", "sensitivities.lquant.json"])
@pytest.mark.parametrize("content", ["my notes", "[]", '[["a", 1]]', '{"lquant": "0.1.0", "kl": {}, "model": "another"}', None])
def test_a_file_of_others_is_not_replaced(model, rows, tmp_path, suffix, content):
    """Told before any work: nothing is read, and nothing is left."""
    file = tmp_path / f"{model.name}_{suffix}"
    file.symlink_to("nowhere") if content is None else file.write_text(content)
    said = run("dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--mlx-path", "result", code=1, cwd=tmp_path).stderr
    assert said.startswith(f"lquant: [pipeline] {file.name}: is there already") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file] and (content is None or file.read_text() == content)


def test_a_default_target_out_of_reach_gives_way(tmp_path):
    """Scales and biases of a float32 model are float32 too: its 4 and 5 bits have more than 5 per weight. Half-way is where 5 bits are with bf16."""
    model, rows = random_model(tmp_path / "f32", dtype=mx.float32), text_rows(tmp_path / "rows.jsonl", count=16, words=8)
    arguments = ["--model", model, "--data-path", rows, "--sequence-length", 16, "--json"]
    done = run("dynamic_quant", *arguments, "--plan-only", "plan.json", cwd=tmp_path)
    least, most, target = (float(x) for x in re.search(r"target of 5 bits per weight is out of reach: .* has (\S+) to (\S+); the target is (\S+)\n", done.stderr).groups())
    assert 5 < least < target < most and target == pytest.approx((least + most) / 2, abs=2e-3)
    assert least <= json.loads(done.stdout)["bits_per_weight"] <= target
    # The same as when it is given; what is given is kept to.
    run("dynamic_quant", *arguments, "--plan-only", "given.json", "--target-bpw", target, cwd=tmp_path)
    assert (tmp_path / "given.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert "a target of 5 bits per weight is too little" in run("dynamic_quant", *arguments, "--plan-only", "x", "--target-bpw", 5, code=1, cwd=tmp_path).stderr
    # Of auto's 4 bits too, and of one width alone.
    said = run("auto", *arguments[:-1], "--dry-run", "--widths", 5, 8, cwd=tmp_path).stderr
    assert "the usual target of 4 bits per weight is out of reach" in said
    uniform = run("dynamic_quant", *arguments, "--plan-only", "one.json", "--widths", 3, "--group-sizes", 64, cwd=tmp_path)
    assert {f["bits"] for f in json.loads((tmp_path / "one.json").read_text()).values() if isinstance(f, dict)} == {3}, uniform.stderr


# Of models of which mlx_lm leaves nearly all dense: in f32, in which they are stored.
TARGETS = {"muse_spark": 29.5}


@pytest.mark.parametrize("name", families.REPRESENTATIVES)
def test_every_op_and_topology(name, tmp_path, ran):
    """Random models, mixtures too, get a plan of three widths, load, and have the size that was asked for."""
    tiny_models.representative(tmp_path / "model", name)
    rows = text_rows(tmp_path / "rows.jsonl", count=24)
    target = TARGETS.get(name, 5)
    done = run("dynamic-quant", "--model", tmp_path / "model", "--data-path", rows, "--mlx-path", tmp_path / "out", *ROWS, "--widths", 3, 4, 6, "--target-bpw", target, "--json",
               cwd=tmp_path)
    figures = json.loads(done.stdout)
    # To the nearest byte.
    assert np.isfinite(figures["kl"]) and figures["bits_per_weight"] <= target * (1 + 0.5 / (figures["bytes"] - 0.5))
    assert np.isfinite(tiny_models.mlx_lm_logits(tmp_path / "out", encode(["the old river walks"]), mx.float32)).all()
    ran("dynamic_quant", name)


def test_it_beats_one_width_of_the_same_size(model, rows, quantized, tmp_path):
    """The knapsack over three widths has at most the bytes of 4 bits everywhere, and a lower divergence, measured without the program."""
    pairs, _ = sensitivity_files(quantized[0])
    shared = ["dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--sensitivities", pairs]
    uniform = json.loads(run(*shared, "--widths", 4, "--group-sizes", 64, "--target-bpw", 4.9, "--mlx-path", tmp_path / "uniform", "--json", code=1).stdout or "{}")
    assert uniform == {}  # 4.9 is more than one width can use
    run(*shared, "--widths", 4, "--group-sizes", 64, "--target-size", "9GB", "--mlx-path", tmp_path / "uniform")
    size = sum(t.nbytes for t in tensors(tmp_path / "uniform").values())
    run(*shared, "--widths", 2, 3, 4, 5, 6, "--target-size", size, "--mlx-path", tmp_path / "free")
    assert sum(t.nbytes for t in tensors(tmp_path / "free").values()) <= size
    held_out = [ids[:24] for ids in encode(sentences(12, seed=1000, words=30))]
    assert kl(model, tmp_path / "free", held_out) < kl(model, tmp_path / "uniform", held_out)


def test_the_same_command_gives_the_same_bytes(quantized, model, rows, tmp_path):
    run("dynamic_quant", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *ROWS, cwd=tmp_path)
    assert tree(tmp_path / "result") == tree(quantized[0] / "result")


@pytest.mark.parametrize("command", [["dynamic_quant"], ["auto"], ["auto", "--dry-run"]])
@pytest.mark.parametrize("target", [["--target-bpw", 1.5], ["--target-bpw", 10], ["--target-size", "1KB"], ["--floor", "*.nowhere=4"]])
def test_what_no_choice_can_meet_is_told_before_any_work(model, rows, tmp_path, command, target):
    """Sizes follow from shapes: no row is read, and nothing is left that would be in the way of the next try."""
    widths = ["--widths", 2, 3, 4, 8]
    done = run(*command, "--model", model, "--data-path", rows, *widths, *target, "--mlx-path", tmp_path / "result", code=1, cwd=tmp_path)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("lquant: [plan]")
    assert list(tmp_path.iterdir()) == []


def test_sensitivities_serve_another_target(model, rows, tmp_path):
    """They do not depend on it: an interrupted run goes on with another target, and ends as if it had been given at once."""
    call = ["dynamic_quant", "--model", model, "--data-path", rows, *ROWS, "--mlx-path", "result"]
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    process = subprocess.Popen([str(a) for a in (LQUANT, *call, "--target-bpw", 4.6)], cwd=tmp_path / "killed", env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    units = tmp_path / "killed" / "result.lquant-run"
    while process.poll() is None and not list(units.glob("start-*-00000.safetensors")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert list(units.glob("start-*"))
    done = run(*call, "--target-bpw", 5.2, cwd=tmp_path / "killed")
    assert "continuing" in done.stderr and "finding sensitivities" not in done.stderr
    run(*call, "--target-bpw", 5.2, cwd=tmp_path / "whole")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
