"""Models through GGUF files: written by llama.cpp's conventions, read by the program, compared with the folders that they were made from."""

import json
import struct

import families
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import tiny_models
from gguf_files import write_gguf
from support import TINY, random_model, run, same_bytes, tensors, text_rows, tree

# What a GGUF file cannot say is left out: other scales of Gemma's scores than by its head, raw probabilities of experts, NoPE layers by list.
MODELS = {
    **{
        name: families.FAMILIES[name]
        for name in (
            "llama llama-untied-biases llama-all-heads-default-dim llama-wide-heads llama-llama3 llama-yarn mistral qwen2 qwen2-untied-yarn "
            "gemma qwen3 qwen3-nested-rope smollm3 phi3 phi3-partial-longrope phi3-su qwen3-moe qwen3-moe-unstacked"
        ).split()
    },
    "gemma2": dict(families.FAMILIES["gemma2"], query_pre_attn_scalar=32.0),
    "gemma3": dict(families.FAMILIES["gemma3"], query_pre_attn_scalar=32.0),
    "gemma3-untied-scaled": dict(families.FAMILIES["gemma3-untied-scaled"], query_pre_attn_scalar=32.0),
    "qwen3-moe-some-dense": dict(families.MOE, mlp_only_layers=[1], tie_word_embeddings=False),
}


@pytest.fixture
def build(monkeypatch, tmp_path):
    def make(name, dtype=None):
        monkeypatch.setitem(families.FAMILIES, name, MODELS[name])
        model, config, unstacked, untied = tiny_models.build(name, seed=4)
        if dtype is not None:
            model.set_dtype(dtype)
        folder = tmp_path / "source"
        tiny_models.save(folder, model, config, unstacked, untied)
        return folder

    return make


def logits(model, ids, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    run("logits", "--model", model, "--ids", tmp_path / "ids.json", "--output", tmp_path / "logits.safetensors", "--dtype", "float32")
    return np.array(mx.load(str(tmp_path / "logits.safetensors"))["logits"])


def assert_same_weights(folder, source, gemma):
    ours, theirs = tensors(folder), tensors(source)
    theirs = {n.replace(".mlp.experts.0.", ".mlp.switch_mlp."): v for n, v in theirs.items() if ".mlp.experts." not in n or ".experts.0." in n}
    if "lm_head.weight" not in ours and gemma:
        theirs.pop("lm_head.weight", None)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if value.ndim == 3 and theirs[name].ndim == 2:  # the first of the experts that lay one by one
            value = value[0]
        if gemma and name.endswith("norm.weight"):
            # 1 + w was rounded to f32, by at most 2^-24 of a sum below 4.
            assert mx.abs(value.astype(mx.float32) - theirs[name].astype(mx.float32)).max().item() <= 2**-22, name
        else:
            assert same_bytes(value, theirs[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(build, tmp_path, name):
    """F32 files: the same weights bit for bit, the same logits as the folder, here and in mlx_lm."""
    source = build(name)
    file = write_gguf(source, tmp_path / "x.gguf", tokenizer_folder=TINY)
    run("convert", "--model", file, "--mlx-path", tmp_path / "back")
    assert_same_weights(tmp_path / "back", source, gemma=name.startswith("gemma"))
    ids = tiny_models.token_ids(160)
    theirs = tiny_models.mlx_lm_logits(source, ids)
    tiny_models.assert_close(logits(file, ids, tmp_path), theirs)
    tiny_models.assert_close(tiny_models.mlx_lm_logits(tmp_path / "back", ids), theirs)


@pytest.mark.parametrize("name", ["llama", "qwen2-untied-yarn", "phi3", "gemma3", "qwen3-moe"])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_stays(build, tmp_path, name, dtype):
    """F32 norms do not make a bfloat16 or float16 model a float32 one."""
    source = build(name, dtype)
    file = write_gguf(source, tmp_path / "x.gguf", tokenizer_folder=TINY)
    run("convert", "--model", file, "--mlx-path", tmp_path / "back")
    found = tensors(tmp_path / "back")
    assert {v.dtype for v in found.values()} == {dtype}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == str(dtype).split(".")[-1]
    if not name.startswith("gemma"):
        assert_same_weights(tmp_path / "back", source, gemma=False)


def test_quantized_file_is_its_bfloat16_rounding(build, tmp_path):
    source = build("llama")
    file = write_gguf(source, tmp_path / "x.gguf", kind="Q8_0", tokenizer_folder=TINY)
    run("convert", "--model", file, "--mlx-path", tmp_path / "back")
    original, found = tensors(source), tensors(tmp_path / "back")
    assert {v.dtype for v in found.values()} == {mx.bfloat16}
    for name, value in found.items():
        w, got = np.array(original[name]), np.array(value.astype(mx.float32))
        # Half a step of Q8_0 (the largest of 32 / 127) with its f16 scale, and half a unit of bfloat16's last place.
        bound = np.abs(w).max() * (0.5 / 127 * (1 + 2**-11) + 2**-9 + 2**-11)
        assert np.abs(w - got).max() <= bound, name


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(folder, the same as a GGUF file) of a random model with the embedded model's tokenizer."""
    folder = random_model(tmp_path_factory.mktemp("gguf") / "small", chat=True)
    return folder, write_gguf(folder, folder.parent / "small.gguf")


def test_split_files_are_one(small, tmp_path):
    folder, whole = small
    write_gguf(folder, tmp_path / "part.gguf", pieces=5)
    names = sorted(p.name for p in tmp_path.glob("part-*.gguf"))
    assert len(names) > 3 and names[0].startswith("part-00001-of-")
    ids = tiny_models.token_ids(8192, rows=1)
    expected = logits(whole, ids, tmp_path)
    for name in (names[0], names[-1]):
        assert np.array_equal(logits(tmp_path / name, ids, tmp_path), expected)
    run("convert", "--model", tmp_path / names[1], "-q", "--mlx-path", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# out\n\n`part`, made small" in card and f"lquant convert --model {tmp_path / names[1]} -q" in card


def test_quantized_folder_is_that_of_the_original(small, tmp_path):
    folder, file = small
    for name, model in (("a", folder), ("b", file)):
        run("convert", "--model", model, "-q", "--mlx-path", tmp_path / name)
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a["model.safetensors"] == b["model.safetensors"]
    assert json.loads(b["lquant.json"])["source"]["name"] == "small"
    loaded, tokenizer = mlx_lm.load(str(tmp_path / "b"))
    _, reference = mlx_lm.load(str(tmp_path / "a"))
    text = "Once upon a time, 12 days — 雪 🙂"
    assert tokenizer.encode(text) == reference.encode(text)
    chat = [{"role": "user", "content": "winter"}]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True) == reference.apply_chat_template(chat, add_generation_prompt=True)
    # Beside eos (0), which alone is in the folder's config.json, the end of a turn that the vocabulary has.
    assert reference.eos_token_ids == {0} and tokenizer.eos_token_ids == {0, tokenizer.encode("<|im_end|>")[0]}
    assert len(list(mlx_lm.stream_generate(loaded, tokenizer, reference.encode("the"), max_tokens=3))) >= 1


def test_commands_take_a_file_as_they_take_a_folder(small, tmp_path):
    """dwq, gptq, awq, dynamic_quant, perplexity, generate, evaluate and report give the same from both."""
    folder, file = small
    rows = text_rows(tmp_path / "rows.jsonl", count=24)
    sizes = ["--data-path", rows, "--num-samples", 8]
    for command in (["gptq", "--bits", 3, *sizes], ["awq", "--bits", 3, *sizes], ["dynamic_quant", "--target-bpw", 4.7, *sizes],
                    ["dwq", "--bits", 3, "--num-valid", 4, "--batch-size", 4, *sizes]):  # fmt: skip
        for name, model in (("a", folder), ("b", file)):
            # dynamic_quant leaves its sensitivities where it runs.
            run(*command, "--model", model, "--mlx-path", tmp_path / f"{command[0]}-{name}", cwd=tmp_path)
        a, b = (tensors(tmp_path / f"{command[0]}-{name}") for name in "ab")
        assert a.keys() == b.keys() and all(same_bytes(a[n], b[n]) for n in a), command[0]
    quantized = tmp_path / "gptq-b"
    figures = [json.loads(run("perplexity", "--model", quantized, "--teacher", m, "--data-path", rows, "--json").stdout) for m in (folder, file)]
    assert figures[0]["kl"] == figures[1]["kl"]
    said = [run("generate", "--model", m, "--prompt", "winter", "--max-tokens", 5, "--temp", 0, "--verbose", "F").stdout for m in (folder, file)]
    assert said[0] == said[1]
    questions = {"goal": "warm room", "sol1": "light a fire", "sol2": "open the window wide", "label": 0}
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text("".join(json.dumps(dict(questions, goal=f"warm room {i}")) + "\n" for i in range(6)))
    evaluate = ["evaluate", "--tasks", "piqa", "--data-dir", tmp_path, "--json"]
    answers = [json.loads(run(*evaluate, "--model", m, "--output-dir", tmp_path / f"evaluated-{m.name}").stdout) for m in (folder, file)]
    assert answers[0]["results"] == answers[1]["results"]
    run("report", quantized, "--teacher", file, "--data-path", rows, "--output", tmp_path / "report.html")
    assert "small" in (tmp_path / "report.html").read_text()


def refused(arguments, *parts, code=1):
    done = run(*arguments, code=code)
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("lquant: "), done.stderr
    for part in parts:
        assert part in lines[0], lines[0]


def test_bad_files_are_refused_in_a_sentence(small, tmp_path):
    _, file = small
    whole = file.read_bytes()
    bad = tmp_path / "bad.gguf"
    architecture = b"general.architecture" + struct.pack("<IQ", 8, 5)  # a text of five letters
    arguments = ["convert", "--model", bad, "-q", "--mlx-path", tmp_path / "out"]
    refused(arguments, "bad.gguf: cannot be opened (No such file or directory)")
    for content, part in (
        (b"", "is cut short"),
        (whole[:1000], "more than fit into its 1000 bytes; the file is cut short"),
        (whole[:-4000], "is cut short: tensor"),
        (b"GGUF" + b"\0\0\0\3" + whole[8:], "is a big-endian GGUF file"),
        (b"GGUF\1\0\0\0" + whole[8:], "version 1"),
        (b"PK" + whole[2:], 'does not start with "GGUF"'),
        (whole.replace(b"smollm", b"abacus"), 'tokenizer.ggml.pre is "abacus"'),
        (whole.replace(architecture + b"llama", architecture + b"mamba"), 'its architecture is "mamba"'),
        (whole.replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"), '"blk.1.attn_x.weight" is none'),
        (whole.replace(b"blk.1.attn_q.weight", b"blk.9.attn_q.weight"), "missing tensor model.layers.1.self_attn.q_proj.weight"),
    ):
        bad.write_bytes(content)
        refused(arguments, part)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf"]
