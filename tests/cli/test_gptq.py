"""`lquant gptq`: what it writes, on every op and topology, and what it does with strange data and wishes."""

import json
import shutil
from pathlib import Path

import families
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny_models
from support import TINY, encode, kl, quantization, random_model, run, sentences, tensors, text_rows, write_rows

WIDTHS = ["--bits", 3, "--sequence-length", 64]


@pytest.fixture(scope="module")
def quantized(model, rows, tmp_path_factory):
    output = tmp_path_factory.mktemp("gptq") / "result"
    done = run("gptq", "--model", model, "--data-path", rows, "--mlx-path", output, *WIDTHS, "--json")
    return output, json.loads(done.stdout), done.stderr


def test_mlx_lm_loads_it(quantized):
    folder, figures, said = quantized
    loaded, tokenizer = mlx_lm.load(str(folder))
    assert mlx_lm.generate(loaded, tokenizer, "the old river", max_tokens=4)
    block = quantization(folder)
    assert (block["bits"], block["group_size"]) == (3, 64)
    assert block["model.embed_tokens"] == {"bits": 6, "group_size": 64, "mode": "affine"}
    assert figures["tokens"] > 0 and set(figures["time"]) == {"forward", "hessians", "range_search", "factors", "solve", "training"}
    assert "Hessians" in said
    record = json.loads((folder / "lquant.json").read_text())
    assert record["command"] == "gptq" and record["options"]["act_order"] == "gar" and record["data"]["files"][0]["file"] == "rows.jsonl"


def test_it_beats_plain_rounding_of_the_same_size(model, quantized, rows, tmp_path):
    folder = quantized[0]
    held_out = [ids[:24] for ids in encode(sentences(6, seed=1000, words=30))]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"model.embed_tokens": {"bits": 6}}))
    run("convert", "--hf-path", model, "-q", "--q-bits", 3, "--plan", plan, "--mlx-path", tmp_path / "plain")
    assert {n: t.nbytes for n, t in tensors(tmp_path / "plain").items()} == {n: t.nbytes for n, t in tensors(folder).items()}
    assert kl(model, folder, held_out) < 0.8 * kl(model, tmp_path / "plain", held_out)


def test_trained_blocks(tmp_path, rows):
    """models/tiny with --train-blocks: nearer to the original than without, for mlx_lm too; the option is part of what the run is."""
    text = Path(__file__).parents[2] / "docs" / "architecture.md"
    quick = ["--model", TINY, "--data-path", text, "--num-samples", 16, "--bits", 2, "--sequence-length", 128]
    run("gptq", *quick, "--mlx-path", tmp_path / "without")
    done = run("gptq", *quick, "--train-blocks", 4, "--mlx-path", tmp_path / "trained", "--json")
    assert json.loads(done.stdout)["time"]["training"] > 0 and "training" in done.stderr
    assert json.loads((tmp_path / "trained" / "lquant.json").read_text())["options"]["train_blocks"] == 4
    assert {n: t.nbytes for n, t in tensors(tmp_path / "trained").items()} == {n: t.nbytes for n, t in tensors(tmp_path / "without").items()}
    mlx_lm.load(str(tmp_path / "trained"))
    held_out = encode([(text.parent / "format.md").read_text()])[0]
    held_out = [held_out[i : i + 128] for i in range(0, 1024, 128)]
    assert kl(TINY, tmp_path / "trained", held_out) < kl(TINY, tmp_path / "without", held_out)


def test_options_change_what_they_say(model, rows, quantized, tmp_path):
    """Each switch leads to another result, and all of them to one that is not worse than plain rounding."""
    held_out = [ids[:24] for ids in encode(sentences(6, seed=1000, words=30))]
    plain = tmp_path / "plain"
    (tmp_path / "plan.json").write_text('{"model.embed_tokens": {"bits": 6}}')
    run("convert", "--hf-path", model, "-q", "--q-bits", 3, "--plan", tmp_path / "plan.json", "--mlx-path", plain)
    reference = tensors(quantized[0])
    worst = kl(model, plain, held_out)
    for i, switch in enumerate((["--act-order", "off"], ["--act-order", "static"], ["--no-range-search"], ["--sweeps", 0], ["--parallel-hessians"],
                                ["--asymmetric", "on"], ["--asymmetric", "off"], ["--damp", 0.1], ["--num-samples", 40], ["--seed", 5, "--num-samples", 40])):
        output = tmp_path / str(i)
        run("gptq", "--model", model, "--data-path", rows, "--mlx-path", output, *WIDTHS, *switch)
        found = tensors(output)
        assert any(not mx.array_equal(found[n], reference[n]) for n in reference), switch
        assert kl(model, output, held_out) < worst, switch


# With training of blocks behind the solve too: gradients through every op are dwq's to show, on the same models.
TRAINED = {"llama", "gemma4", "qwen3_5", "deepseek-v3", "rwkv7", "nemotron_h-mixtures-latents", "gpt_oss", "longcat-flash", "muse_spark", "qwen3-moe"}


@pytest.mark.parametrize("name", families.REPRESENTATIVES)
def test_every_op_and_topology(name, tmp_path, ran):
    """Random models are quantized and load; logits are nearer to the original's than those of plain rounding."""
    source = tiny_models.representative(tmp_path / "source", name)
    rows = text_rows(tmp_path / "rows.jsonl", count=64)
    gptq = ["gptq", "--model", source, "--data-path", rows, "--bits", 3, "--group-size", 32, "--sequence-length", 64]
    run(*gptq, "--mlx-path", tmp_path / "gptq")
    formats = quantization(tmp_path / "gptq")
    plan = {path: form for path, form in formats.items() if isinstance(form, dict)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run("convert", "--hf-path", source, "-q", "--q-bits", 3, "--q-group-size", 32, "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "plain")
    ids = [ids[:24] for ids in encode(sentences(4, seed=1000, words=30))]
    exact, plain = (tiny_models.mlx_lm_logits(f, ids, mx.float32) for f in (source, tmp_path / "plain"))
    found = [tmp_path / "gptq"]
    if name in TRAINED:
        run(*gptq, "--train-blocks", 1, "--mlx-path", tmp_path / "trained")
        found.append(tmp_path / "trained")
    for folder in found:
        assert np.square(tiny_models.mlx_lm_logits(folder, ids, mx.float32) - exact).mean() < np.square(plain - exact).mean()
    ran("gptq", name)


def test_starved_experts_are_named(tmp_path):
    source = tiny_models.family_folder(tmp_path / "source", "qwen3-moe", seed=4, vocab_size=8192)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "the river"}])
    done = run("gptq", "--model", source, "--data-path", rows, "--mlx-path", tmp_path / "result", *WIDTHS)
    assert "experts saw fewer than" in done.stderr and "mlp.switch_mlp.gate_proj" in done.stderr
    assert all(np.isfinite(np.array(t.astype(mx.float32))).all() for n, t in tensors(tmp_path / "result").items() if t.dtype != mx.uint32)


def test_one_token(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "the"}])
    run("gptq", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", "--bits", 3, "--sequence-length", 1)
    mlx_lm.load(str(tmp_path / "result"))


def test_a_group_that_does_not_divide(tmp_path, rows):
    model = random_model(tmp_path / "model", intermediate_size=192)
    done = run("gptq", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "fallback", "--bits", 3, "--group-size", 128, "--num-samples", 8)
    assert quantization(tmp_path / "fallback")["model.layers.0.mlp.down_proj"] == {"bits": 6, "group_size": 64, "mode": "affine"}
    mlx_lm.load(str(tmp_path / "fallback"))
    done = run("gptq", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "dense", "--bits", 3, "--group-size", 128,
               "--fallback-group-size", 128, "--num-samples", 8)
    assert "model.layers.0.mlp.down_proj stays dense: its 192 inputs" in done.stderr
    mlx_lm.load(str(tmp_path / "dense"))


def test_plans(model, rows, tmp_path):
    plan = tmp_path / "plan.json"
    quick = ["gptq", "--model", model, "--data-path", rows, "--num-samples", 8]
    plan.write_text(json.dumps({"bits": 4, "model.layers.1.mlp.down_proj": {"bits": 8, "group_size": 32}, "model.layers.0.self_attn.o_proj": False}))
    run(*quick, "--plan", plan, "--embed-bits", 4, "--mlx-path", tmp_path / "result")
    block = quantization(tmp_path / "result")
    assert block["model.layers.1.mlp.down_proj"] == {"bits": 8, "group_size": 32, "mode": "affine"}
    assert block["model.layers.0.self_attn.o_proj"] is False
    assert "model.embed_tokens" not in block
    mlx_lm.load(str(tmp_path / "result"))
    for text, words in {
        "[1]": "a plan is a JSON object",
        "{": "is not JSON",
        '{"model.layers.9.mlp.down_proj": {"bits": 8}}': "model.layers.9.mlp.down_proj",
        '{"model.layers.1.mlp.down_proj": {"bits": 7}}': "7",
        '{"model.layers.1.mlp.down_proj": {"bits": "many"}}': 'is "many", not a whole number from 2 to 8',
        '{"model.layers.1.mlp.down_proj": 8}': "is 8, not an object with bits",
    }.items():
        plan.write_text(text)
        done = run(*quick, "--plan", plan, "--mlx-path", tmp_path / "refused", code=1)
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "refused").exists()


def test_several_files(model, tmp_path):
    for name, seed in (("a.txt", 1), ("b.txt", 2)):
        (tmp_path / name).write_text(" ".join(sentences(40, seed=seed)))
    run("gptq", "--model", model, "--data-path", tmp_path / "a.txt", tmp_path / "b.txt", "--num-samples", 8, "--mlx-path", tmp_path / "result", *WIDTHS)
    record = json.loads((tmp_path / "result" / "lquant.json").read_text())
    assert [f["file"] for f in record["data"]["files"]] == ["a.txt", "b.txt"] and record["data"]["rows"] == 8


def test_weights_that_are_not_numbers(model, rows, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = tensors(broken)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    mx.save_safetensors(str(broken / "model.safetensors"), weights, metadata={"format": "mlx"})
    done = run("gptq", "--model", broken, "--data-path", rows, "--num-samples", 8, "--mlx-path", tmp_path / "result", code=1)
    assert "model.layers.1.mlp.up_proj" in done.stderr and not (tmp_path / "result").exists()
