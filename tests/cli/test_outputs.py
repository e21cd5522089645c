"""What the program writes, read by MLX, mlx_lm and NumPy."""

import hashlib
import json

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import yaml
from mlx.utils import tree_map
from mlx_lm.utils import load_model
from support import (
    LQUANT,
    TINY,
    chat_rows,
    encode,
    kl,
    log_softmax,
    quantization,
    random_model,
    run,
    same_bytes,
    same_model,
    sentences,
    tensors,
    text_rows,
    tree,
)

COUNTS = ["--num-samples", 48, "--num-valid", 8, "--batch-size", 4]
SIZES = ["--bits", 3, *COUNTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("source") / "small", chat=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return text_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", count=56)


@pytest.fixture(scope="module")
def held_out():
    """Token ids of sentences that no training run here sees: [6, 24]."""
    return [ids[:24] for ids in encode(sentences(6, seed=1000, words=30))]


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain") / "result"
    run("convert", "--hf-path", model, "-q", "--q-bits", 3, "--mlx-path", output)
    return output


@pytest.fixture(scope="module")
def learned(model, rows, tmp_path_factory):
    output = tmp_path_factory.mktemp("learned") / "result"
    done = run("dwq", "--model", model, "--data-path", rows, "--mlx-path", output, *SIZES, "--json")
    return output, json.loads(done.stdout)


def mlx_lm_logits(folder, ids):
    model, _ = load_model(folder)
    model.update(tree_map(lambda p: p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p, model.parameters()))
    return np.array(model(mx.array(ids)).astype(mx.float32))


def lquant_logits(folder, ids, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    run("logits", "--model", folder, "--ids", tmp_path / "ids.json", "--output", tmp_path / "logits.safetensors", "--dtype", "float32")
    return np.array(mx.load(str(tmp_path / "logits.safetensors"))["logits"])


FORMATS = [("affine", 2, 32), ("affine", 3, 64), ("affine", 4, 128), ("affine", 5, 32), ("affine", 6, 64), ("affine", 8, 128)]
FORMATS += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


@pytest.mark.parametrize("mode,bits,group_size", FORMATS)
def test_convert_writes_what_mlx_lm_writes(model, tmp_path, mode, bits, group_size):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    run("convert", "--hf-path", model, "-q", "--q-mode", mode, "--q-bits", bits, "--q-group-size", group_size, "--mlx-path", ours)
    mlx_lm.convert(str(model), str(theirs), quantize=True, q_bits=bits, q_group_size=group_size, q_mode=mode)
    same_model(ours, theirs)
    assert quantization(ours) == quantization(theirs) == {"group_size": group_size, "bits": bits, "mode": mode}
    assert json.loads((ours / "config.json").read_text())["quantization_config"] == quantization(ours)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_convert_changes_the_dtype(model, tmp_path, dtype):
    for name, more in (("dense", []), ("packed", ["-q"])):
        ours, theirs = tmp_path / f"ours-{name}", tmp_path / f"theirs-{name}"
        run("convert", "--hf-path", model, "--dtype", dtype, "--mlx-path", ours, *more)
        mlx_lm.convert(str(model), str(theirs), quantize=name == "packed", dtype=dtype)
        same_model(ours, theirs)
        assert json.loads((ours / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_dequantize(model, tmp_path, mode):
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    run("convert", "--hf-path", model, "-q", "--q-mode", mode, "--mlx-path", packed)
    run("convert", "--hf-path", packed, "-d", "--mlx-path", dense)
    stored, found, form = tensors(packed), tensors(dense), quantization(packed)
    assert found.keys() == {name for name in stored if not name.endswith((".scales", ".biases"))}
    for name, value in found.items():
        path, expected = name.removesuffix(".weight"), stored[name]
        if path + ".scales" in stored:
            expected = mx.dequantize(expected, stored[path + ".scales"], stored.get(path + ".biases"), **form).astype(mx.bfloat16)
        assert same_bytes(value, expected), name
    assert "quantization" not in json.loads((dense / "config.json").read_text())


@pytest.mark.parametrize("source", ["small", "embedded"])
def test_mlx_lm_generates_from_a_converted_folder(model, tmp_path, source):
    run("convert", "--hf-path", model if source == "small" else TINY, "-q", "--mlx-path", tmp_path / "packed")
    loaded, tokenizer = mlx_lm.load(str(tmp_path / "packed"))
    prompt = tokenizer.encode("Once upon a time")
    tokens = [response.token for response in mlx_lm.stream_generate(loaded, tokenizer, prompt, max_tokens=3)]
    assert len(tokens) == 3 and all(0 <= token < 8192 for token in tokens)


def test_dwq_folder_loads_in_mlx_lm_and_gives_the_same_logits(learned, held_out, tmp_path):
    folder, _ = learned
    loaded, tokenizer = mlx_lm.load(str(folder))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "winter light"}], add_generation_prompt=True)
    assert len(list(mlx_lm.stream_generate(loaded, tokenizer, prompt, max_tokens=3))) >= 1
    ours, theirs = lquant_logits(folder, held_out, tmp_path), mlx_lm_logits(folder, held_out)
    # Two f32 computations of the same numbers: sums of a few hundred products in another order differ by about 1e-6 of
    # their size; two blocks and the head amplify that by far less than the hundredfold allowed here.
    assert np.abs(ours - theirs).max() <= 1e-4 * (theirs.max() - theirs.min())


def test_dwq_folder_says_what_it_is(model, rows, learned):
    folder, figures = learned
    files = {"tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in folder.iterdir()} == files | {
        "config.json",
        "lquant.json",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json",
    }
    for name in files:
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert quantization(folder) == {"group_size": 64, "bits": 3, "mode": "affine"}
    source = json.loads((model / "config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert {k: v for k, v in config.items() if not k.startswith("quantization")} == source

    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    record = json.loads((folder / "lquant.json").read_text())
    listed = ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
    fingerprint = hashlib.sha256("".join(f"{name} {digest(model / name)}\n" for name in listed).encode()).hexdigest()
    assert record["command"] == "dwq" and record["source"] == {"name": "small", "sha256": fingerprint}
    assert record["data"]["train"] == {"file": "rows.jsonl", "sha256": digest(rows)}
    assert record["data"]["rows"] == {"train": 48, "valid": 8}
    assert (record["options"]["bits"], record["options"]["group_size"], record["options"]["seed"]) == (3, 64, 123)
    quality = record["quality"]
    assert 0 < quality["validation_kl"] < quality["validation_kl_start"] and quality["steps"] == 12
    for key in quality:
        assert figures[key] == quality[key]
    stored = tensors(folder)
    assert record["bytes"] == figures["bytes"] == sum(value.nbytes for value in stored.values())
    assert record["parameters"] == sum(value.size for value in tensors(model).values())
    assert record["bits_per_weight"] == pytest.approx(8 * record["bytes"] / record["parameters"], rel=1e-12)

    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert card.startswith("---\n") and front["library_name"] == "mlx" and front["tags"] == ["mlx", "lquant", "quantized", "3-bit"]
    assert f"# {folder.name}\n" in card and f"mlx_lm.generate --model {folder} " in card
    assert "affine 3 bits, groups of 64" in card and f"{quality['validation_kl']:.4f}" in card


def test_perplexity_is_the_one_of_mlx_lms_logits(tmp_path):
    """In f32 throughout. Logits that agree to d give log-probabilities that agree to 2 d and, the probabilities' own change
    included, a KL that agrees to about 4 d; d is 1e-5 of the logits' range, ten times what f32 sums leave."""
    model = random_model(tmp_path / "model", seed=3, dtype=mx.float32, torch_dtype="float32")
    run("convert", "--hf-path", model, "-q", "--q-bits", 4, "--mlx-path", tmp_path / "packed")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(sentences(12, seed=5)))
    arguments = ["--model", tmp_path / "packed", "--teacher", model, "--data-path", text, "--sequence-length", 32, "--batch-size", 2]
    found = json.loads(run("perplexity", *arguments, "--num-samples", 6, "--json").stdout)
    ids = np.array(encode([text.read_text()])[0])
    inputs, targets = ids[: 6 * 32].reshape(6, 32), ids[1 : 6 * 32 + 1].reshape(6, 32, 1)
    logits = [mlx_lm_logits(folder, inputs.tolist()).astype(np.float64) for folder in (model, tmp_path / "packed")]
    d = 1e-5 * np.ptp(logits[0])
    p, q = map(log_softmax, logits)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    nll = -np.take_along_axis(q, targets, -1)
    assert found["tokens"] == 6 * 32
    assert found["nll"] == pytest.approx(nll.mean(), abs=2 * d)
    assert found["perplexity"] == pytest.approx(np.exp(found["nll"]), rel=1e-9)
    assert found["teacher_perplexity"] == pytest.approx(np.exp(-np.take_along_axis(p, targets, -1).mean()), rel=2 * d)
    assert found["kl"] == pytest.approx(divergence.mean(), abs=4 * d)
    assert found["kl_se"] == pytest.approx(divergence.mean(-1).std(ddof=1) / np.sqrt(6), abs=4 * d)
    assert found["kl_p99"] == pytest.approx(np.sort(divergence.ravel())[int(0.99 * (6 * 32 - 1))], abs=4 * d)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean(), abs=1.5 / (6 * 32))  # one tie at most


def test_dwq_is_closer_to_the_teacher_than_rounding(model, plain, learned, held_out):
    assert kl(model, learned[0], held_out) < kl(model, plain, held_out)


@pytest.mark.parametrize("codes", ["move", "fixed"])
def test_dwq_improves_a_quantized_model(model, plain, rows, held_out, tmp_path, codes):
    output = tmp_path / "result"
    student = ["--quantized-model", plain, "--codes", codes]
    run("dwq", "--model", model, "--data-path", rows, "--mlx-path", output, *COUNTS, *student)
    assert kl(model, output, held_out) < kl(model, plain, held_out)
    assert quantization(output) == quantization(plain)
    before, after = tensors(plain), tensors(output)
    kept = [same_bytes(before[name], after[name]) for name in before if name.endswith("proj.weight")]
    assert all(kept) if codes == "fixed" else not any(kept)


def test_cached_hidden_states_teach_the_same(model, rows, learned, tmp_path):
    targets = ["--target-dir", tmp_path / "targets"]
    command = ["dwq", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *SIZES, *targets]
    run(*command, "--targets-only")
    assert [p.name for p in tmp_path.iterdir()] == ["targets"]
    made = tree(tmp_path / "targets")
    run(*command)
    assert tree(tmp_path / "targets") == made
    a, b = tensors(learned[0]), tensors(tmp_path / "result")
    assert a.keys() == b.keys() and all(same_bytes(a[name], b[name]) for name in a)


def test_cached_logits_teach_nearly_as_well(model, rows, plain, held_out, tmp_path):
    targets = ["--target-dir", tmp_path / "targets", "--targets", "topk"]
    run("dwq", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *SIZES, *targets)
    assert kl(model, tmp_path / "result", held_out) < kl(model, plain, held_out)
    kept = mx.load(str(next((tmp_path / "targets" / "valid").iterdir())))
    assert kept["logits"].shape == kept["indices"].shape and kept["logits"].shape[-1] < 8192


def test_prompts_are_masked(model, tmp_path):
    """The tokens that were learned from are counted again with transformers' own template and tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    data = tmp_path / "data"
    data.mkdir()
    train, _ = chat_rows(data / "train.jsonl", 16), chat_rows(data / "valid.jsonl", 4, seed=1)
    whole = answers = 0
    for line in train.read_text().splitlines():
        messages = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        size, begin = (len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (text, prompt))
        whole += size
        answers += size - begin + 1  # from the prompt's last token, which predicts the answer's first
    command = ["dwq", "--model", model, "--data-path", data, "--bits", 3, "--num-samples", 16, "--num-valid", 4, "--batch-size", 4, "--json"]
    masked = json.loads(run(*command, "--mlx-path", tmp_path / "masked", "--mask-prompt").stdout)
    unmasked = json.loads(run(*command, "--mlx-path", tmp_path / "unmasked").stdout)
    assert masked["tokens"] == answers and unmasked["tokens"] == whole
    assert not same_bytes(*(tensors(tmp_path / name)["model.embed_tokens.scales"] for name in ("masked", "unmasked")))


def test_link_named_after_a_command(model, rows, learned, tmp_path):
    link = tmp_path / "lquant.dwq"
    link.symlink_to(LQUANT)
    run("--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *SIZES, program=link)
    assert tree(tmp_path / "result") == tree(learned[0])
