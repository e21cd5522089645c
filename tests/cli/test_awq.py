"""`lquant awq`: what it writes, on every op and topology, and what its options change."""

import json

import families
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny_models
from support import CONFIG, dense_weights, encode, kl, quantization, random_model, run, same_bytes, sentences, tensors, text_rows, write_rows

WIDTHS = ["--bits", 3, "--embed-bits", 6, "--embed-group-size", 64, "--sequence-length", 64]
HELD_OUT = [ids[:24] for ids in encode(sentences(6, seed=1000, words=30))]


def unbalanced(folder, **changes):
    """A llama in which one channel in eight of all that AWQ scales is 8 times as large and what reads it as much smaller, as training leaves norms.
    Plain rounding to three bits makes such weights 0. Powers of two: the model is the one without them."""
    random_model(folder, **changes)
    weights = tensors(folder)
    for i in range(json.loads((folder / "config.json").read_text())["num_hidden_layers"]):
        for producer, readers in {
            "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            "self_attn.v_proj": ["self_attn.o_proj"],
            "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.up_proj": ["mlp.down_proj"],
        }.items():
            weights[f"model.layers.{i}.{producer}.weight"][::8] *= 8
            for reader in readers:
                weights[f"model.layers.{i}.{reader}.weight"][:, ::8] *= 1 / 8
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return unbalanced(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return text_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", count=96)


def awq(model, rows, output, *more):
    return ["awq", "--model", model, "--data-path", rows, "--mlx-path", output, *more]


@pytest.fixture(scope="module")
def quantized(model, rows, tmp_path_factory):
    output = tmp_path_factory.mktemp("awq") / "result"
    done = run(*awq(model, rows, output, *WIDTHS, "--json"))
    return output, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """Plain rounding to the very same formats."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plan.json").write_text(json.dumps({"model.embed_tokens": {"bits": 6}}))
    run("convert", "--hf-path", model, "-q", "--q-bits", 3, "--plan", folder / "plan.json", "--mlx-path", folder / "result")
    return folder / "result"


@pytest.fixture(scope="module")
def plain_kl(model, plain):
    return kl(model, plain, HELD_OUT)


def scales_of(folder):
    return mx.load(str(folder / "scales.awq"), format="safetensors")


def test_mlx_lm_loads_it(quantized):
    folder, figures, said = quantized
    loaded, tokenizer = mlx_lm.load(str(folder))
    assert mlx_lm.generate(loaded, tokenizer, "the old river", max_tokens=4)
    block = quantization(folder)
    assert (block["bits"], block["group_size"]) == (3, 64)
    assert block["model.embed_tokens"] == {"bits": 6, "group_size": 64, "mode": "affine"}
    assert figures["tokens"] > 0 and set(figures["time"]) == {"forward", "hessians", "search", "gate"}
    assert (figures["edges"], figures["edges_scaled"]) == (8, len(scales_of(folder))) and figures["output_error_ratio"] < 1
    assert f"scales on {figures['edges_scaled']} of 8 edges" in said
    record = json.loads((folder / "lquant.json").read_text())
    assert record["command"] == "awq" and record["data"]["files"][0]["file"] == "rows.jsonl"
    expected = dict(bits=3, group_size=64, embed_bits=6, embed_group_size=64, num_samples=32, sequence_length=64, seed=123)
    expected.update(n_grid=10, duo=True, clip=True, inputs="auto")
    assert expected.items() <= record["options"].items()
    assert [p.name for p in folder.parent.iterdir()] == ["result"]


def test_it_beats_plain_rounding_of_the_same_size(model, quantized, plain, plain_kl):
    sizes = [{n: t.nbytes for n, t in tensors(folder).items()} for folder in (plain, quantized[0])]
    assert sizes[0] == sizes[1]
    # One input channel in eight is lost to plain rounding, and not to a scaled one; three bits' own noise is left.
    assert kl(model, quantized[0], HELD_OUT) < 0.5 * plain_kl


def folded(weights, scales, groups):
    """A llama's dense weights with scales along its edges: norm → what reads it, v → o (a value head is read by `groups` query heads), up → down."""
    made = dict(weights)

    def multiply(path, factor):
        made[path + ".weight"] = made[path + ".weight"] * factor

    for producer, s in scales.items():
        layer, _, kind = producer.rpartition(".")
        block = ".".join(producer.split(".")[:3])
        if kind == "input_layernorm":
            multiply(producer, 1 / s)
            for name in "qkv":
                multiply(f"{block}.self_attn.{name}_proj", s)
        elif kind == "post_attention_layernorm":
            multiply(producer, 1 / s)
            for name in ("gate", "up"):
                multiply(f"{block}.mlp.{name}_proj", s)
        elif kind == "v_proj":
            multiply(producer, 1 / s[:, None])
            multiply(f"{layer}.o_proj", np.repeat(s.reshape(-1, CONFIG["head_dim"]), groups, 0).reshape(-1))
        else:
            assert kind == "up_proj"
            multiply(producer, 1 / s[:, None])
            multiply(f"{layer}.down_proj", s)
    return made


def test_the_scales_that_it_writes_are_those_in_its_tensors(model, quantized):
    source, found = dense_weights(model), dense_weights(quantized[0])
    scales = {name: np.array(value) for name, value in scales_of(quantized[0]).items()}
    norms = [name for name in scales if name.endswith("layernorm")]
    assert len(norms) == 4 and len(scales) == 8  # no edge can do without
    for name, s in scales.items():
        assert s.dtype == np.float32 and np.isfinite(s).all() and (s > 0).all()
        if name in norms:
            old, new = source[name + ".weight"], found[name + ".weight"]
            # The scale is the quotient of two bf16 numbers, rounded once.
            assert (old != new).mean() > 0.5 and (np.abs(old / new - s) <= 2.0**-24 * s).all()

    def error(scales):
        """Of the linears of the blocks, each relative to its size."""
        expected = folded(source, scales, groups=2)
        return sum(np.square(found[n] - w).sum() / np.square(w).sum() for n, w in expected.items() if "_proj" in n)

    # What three bits leave is near 0.04 of each of 14 linears; every scale that is forgotten makes it more.
    assert error(scales) < 14 * 0.08
    for name in scales:
        assert error({n: s for n, s in scales.items() if n != name}) > error(scales), name


def test_nothing_searched_is_plain_rounding(model, rows, plain, tmp_path):
    """One exponent, r = 0, scales nothing; without searched ranges what is left is the rule of `convert`, byte for byte."""
    done = run(*awq(model, rows, tmp_path / "result", *WIDTHS, "--n-grid", 1, "--no-duo", "--no-clip", "--json"))
    found, expected = tensors(tmp_path / "result"), tensors(plain)
    assert found.keys() == expected.keys() and all(same_bytes(found[n], expected[n]) for n in expected)
    assert not (tmp_path / "result" / "scales.awq").exists()
    figures = json.loads(done.stdout)
    assert (figures["edges_scaled"], figures["blocks_clipped"], figures["output_error_ratio"]) == (0, 0, 1)


def test_options_change_what_they_say(model, rows, plain_kl, tmp_path):
    """Each switch leads to another result, says so, and leads to none that is worse than plain rounding."""

    def result(*switch):
        output = tmp_path / ("result" + "".join(map(str, switch)))
        done = run(*awq(model, rows, output, *WIDTHS, *([] if "--n-grid" in switch else ["--n-grid", 3]), *switch, "--json"))
        assert kl(model, output, HELD_OUT) < plain_kl, switch
        return output, json.loads(done.stdout), json.loads((output / "lquant.json").read_text())["options"]

    def differ(a, b):
        a, b = tensors(a), tensors(b)
        return any(not same_bytes(a[n], b[n]) for n in a)

    default, usual, _ = result()
    for switch, options in {
        ("--no-duo",): dict(duo=False),
        ("--n-grid", 2): dict(n_grid=2),
        ("--num-samples", 40): dict(num_samples=40, seed=123),
        ("--seed", 5): dict(num_samples=32, seed=5),
    }.items():
        output, figures, found = result(*switch)
        assert options.items() <= found.items() and differ(output, default), switch
        assert figures["blocks_clipped"] == 2, switch
    output, figures, found = result("--no-clip")
    assert found["clip"] is False and figures["blocks_clipped"] == 0 and figures["edges_scaled"] >= 4 and differ(output, default)

    # Both blocks see inputs of one kind, and 'auto' takes for the second (the first has but one) what is better there.
    by, blocks = {}, {}
    for kind in ("full", "quantized"):
        by[kind], figures, found = result("--inputs", kind)
        assert found["inputs"] == kind
        blocks[kind] = figures["blocks_from_quantized_inputs"]
    assert blocks == {"full": 0, "quantized": 2} and differ(by["full"], by["quantized"])
    chosen = {1: "full", 2: "quantized"}[usual["blocks_from_quantized_inputs"]]
    assert not differ(by[chosen], default)


@pytest.mark.parametrize("name", families.REPRESENTATIVES)
def test_every_op_and_topology(name, tmp_path, ran):
    """What is written is what mlx_lm computes with, and its logits are nearer to the original's than those of plain rounding."""
    source = tiny_models.representative(tmp_path / "source", name)
    rows = text_rows(tmp_path / "rows.jsonl", count=32)
    formats = ["--bits", 3, "--group-size", 32, "--embed-bits", 6, "--embed-group-size", 32]
    run(*awq(source, rows, tmp_path / "awq", *formats, "--sequence-length", 64, "--n-grid", 2))
    plan = {path: form for path, form in quantization(tmp_path / "awq").items() if isinstance(form, dict)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run("convert", "--hf-path", source, "-q", "--q-bits", 3, "--q-group-size", 32, "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "plain")
    ids = [ids[:24] for ids in encode(sentences(4, seed=1000, words=30))]
    exact, found, plain = (tiny_models.mlx_lm_logits(f, ids, mx.float32) for f in (source, tmp_path / "awq", tmp_path / "plain"))
    tiny_models.assert_close(tiny_models.lquant_logits(tmp_path / "awq", ids, "float32"), found)
    assert np.square(found - exact).mean() < np.square(plain - exact).mean()
    ran("awq", name)


def test_experts_without_tokens(tmp_path):
    source = tiny_models.representative(tmp_path / "source", "qwen3-moe")
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "the river"}])
    done = run(*awq(source, rows, tmp_path / "result", *WIDTHS, "--n-grid", 2))
    assert "experts saw fewer than" in done.stderr and "mlp.switch_mlp.gate_proj" in done.stderr
    found = {**tensors(tmp_path / "result"), **(scales_of(tmp_path / "result") if (tmp_path / "result" / "scales.awq").exists() else {})}
    assert all(np.isfinite(np.array(t.astype(mx.float32))).all() for t in found.values() if t.dtype != mx.uint32)
    mlx_lm.load(str(tmp_path / "result"))


def test_one_token(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "the"}])
    run(*awq(model, rows, tmp_path / "result", "--bits", 3, "--sequence-length", 1, "--n-grid", 3))
    mlx_lm.load(str(tmp_path / "result"))


def test_a_group_that_does_not_divide(tmp_path, rows):
    model = random_model(tmp_path / "model", intermediate_size=192)
    quick = ["--bits", 3, "--group-size", 128, "--num-samples", 8, "--n-grid", 3]
    run(*awq(model, rows, tmp_path / "fallback", *quick))
    assert quantization(tmp_path / "fallback")["model.layers.0.mlp.down_proj"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    mlx_lm.load(str(tmp_path / "fallback"))
    done = run(*awq(model, rows, tmp_path / "dense", *quick, "--embed-group-size", 128))
    assert "model.layers.0.mlp.down_proj stays dense: its 192 inputs" in done.stderr
    assert "model.layers.0.mlp.up_proj" not in scales_of(tmp_path / "dense")  # nobody quantized reads it
    mlx_lm.load(str(tmp_path / "dense"))


def test_plans(model, rows, plain_kl, tmp_path):
    """Some of a norm's readers dense, some of another format."""
    plan = tmp_path / "plan.json"
    changes = {
        "model.layers.0.self_attn.k_proj": False,
        "model.layers.0.mlp.gate_proj": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        "model.layers.1.mlp.down_proj": {"bits": 8, "group_size": 32},
        "model.layers.1.mlp.gate_proj": False,
        "model.layers.1.mlp.up_proj": False,
    }
    plan.write_text(json.dumps(changes))
    run(*awq(model, rows, tmp_path / "result", *WIDTHS, "--plan", plan))
    block = quantization(tmp_path / "result")
    assert block["model.layers.0.self_attn.k_proj"] is False and block["model.layers.0.mlp.gate_proj"]["mode"] == "mxfp4"
    assert block["model.layers.1.mlp.down_proj"] == {"bits": 8, "group_size": 32, "mode": "affine"}
    assert "model.layers.1.post_attention_layernorm" not in scales_of(tmp_path / "result")
    assert kl(model, tmp_path / "result", HELD_OUT) < plain_kl
    mlx_lm.load(str(tmp_path / "result"))
    plan.write_text('{"model.layers.9.mlp.down_proj": {"bits": 8}}')
    done = run(*awq(model, rows, tmp_path / "refused", "--plan", plan), code=1)
    assert "model.layers.9.mlp.down_proj" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "refused").exists()
