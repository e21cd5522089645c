"""Whatever is wrong with the input: one sentence that names it, the right exit code, and a disk as it was before."""

import json
import os
import struct
import subprocess

import mlx.core as mx
import pytest
from support import ENVIRONMENT, LQUANT, limit_files, random_model, run, sentences, tensors, text_rows, tokenizer_with_more, tree


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("good") / "model")


@pytest.fixture(scope="module")
def packed(good, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "model"
    run("convert", "--hf-path", good, "-q", "--mlx-path", output)
    return output


@pytest.fixture
def model(good, tmp_path):
    """A copy to damage."""
    return copied(good, tmp_path / "in" / "model")


@pytest.fixture
def out(tmp_path):
    """A folder for results: everything that may be written lies there."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def copied(source, target):
    target.mkdir(parents=True)
    for name, content in tree(source).items():
        (target / name).write_bytes(content)
    return target


def refused(out, arguments, *parts, code=1, **options):
    """The program refuses: one line on stderr that holds all `parts`, nothing on stdout, and `out` as it was."""
    before = tree(out)
    done = run(*arguments, code=code, cwd=out, **options)
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("lquant: "), done.stderr
    for part in parts:
        assert str(part) in lines[0], lines[0]
    assert done.stdout == ""
    assert tree(out) == before
    assert sorted(p.name for p in out.iterdir()) == sorted({name.split("/")[0] for name in before})


def last_line_refused(out, arguments, *parts):
    """The same of commands that say more before they read their rows."""
    before = tree(out)
    done = run(*arguments, code=1, cwd=out)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("lquant: "), done.stderr
    for part in parts:
        assert str(part) in last, last
    assert done.stdout == "" and tree(out) == before


SIZES = {"--bits": 3, "--num-samples": 8, "--num-valid": 2, "--batch-size": 4}


def convert(model, out, *more):
    return ["convert", "--hf-path", model, "-q", "--mlx-path", out / "result", *more]


def dwq(model, out, data, *more):
    sizes = [part for flag, value in SIZES.items() if flag not in more for part in (flag, value)]
    return ["dwq", "--model", model, "--mlx-path", out / "result", "--data-path", data, *sizes, *more]


def with_header(model, change):
    """Rewrites the header of model.safetensors as `change` makes it out of its JSON."""
    file = model / "model.safetensors"
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def test_truncated_weights(model, out):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(out, convert(model, out), file, "cut short")


def test_overlapping_tensors(model, out):
    def overlap(header):
        names = sorted((n for n in header if n != "__metadata__" and "q_proj" in n))
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    with_header(model, overlap)
    refused(out, convert(model, out), model / "model.safetensors", "q_proj")


def test_absurd_header_length(model, out):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 63) + file.read_bytes()[8:])
    refused(out, convert(model, out), file, "9223372036854775808")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.safetensors/../x.safetensors"])
def test_index_that_leaves_the_folder(model, out, name):
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refused(out, convert(model, out), index, name)


def test_missing_tensor(model, out):
    weights = tensors(model)
    del weights["model.layers.1.mlp.up_proj.weight"]
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    refused(out, convert(model, out), model, "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(model, out, value):
    weights = tensors(model)
    weights["model.embed_tokens.weight"][3, 5] = value
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    refused(out, convert(model, out), "model.embed_tokens.weight")


def test_unknown_family(model, out):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(dict(config, model_type="abacus")))
    refused(out, convert(model, out), "abacus", "lquant families", "CONTRIBUTING.md")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "Abacus"}}'])
def test_unreadable_tokenizer(model, out, content):
    (model / "tokenizer.json").write_text(content)
    refused(out, dwq(model, out, text_rows(model / "rows.jsonl")), model / "tokenizer.json")


@pytest.mark.parametrize("row", ["not json", '{"txt": "a"}', '{"text": 3}', '{"messages": []}', "[1]"])
def test_unreadable_row(good, out, tmp_path, row):
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text}) for text in sentences(3)]
    data.write_text("\n".join([lines[0], "", row, *lines[1:]]) + "\n")
    refused(out, dwq(good, out, data), data, "row 3")


def commands_with_data(model, out, data):
    """Each command that reads rows."""
    common = ["--model", model, "--mlx-path", out / "result", "--data-path", data]
    return {
        "dwq": dwq(model, out, data, "--num-samples", 99),
        "gptq": ["gptq", *common],
        "awq": ["awq", *common],
        "dynamic_quant": ["dynamic_quant", *common],
        "auto": ["auto", *common],
        "perplexity": ["perplexity", "--model", model, "--data-path", data, "--sequence-length", 4],
        "report": ["report", model, "--teacher", model, "--output", out / "page.html", "--data-path", data, "--sequence-length", 4],
    }


COMMANDS_WITH_DATA = ["dwq", "gptq", "awq", "dynamic_quant", "auto", "perplexity", "report"]


@pytest.mark.parametrize("command", COMMANDS_WITH_DATA)
def test_a_token_outside_the_model_names_its_row(model, out, tmp_path, command):
    tokenizer_with_more(model, 8192, "<sep>")
    data = tmp_path / "rows.jsonl"
    rows = ["the river and the stone"] * 6 + ["a <sep> b"] + ["the old house"] * 5
    data.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    # auto says what it is going to do before it reads.
    last_line_refused(out, commands_with_data(model, out, data)[command], f"{data}: row 7: token 8192", "<sep>", "table of 8192", "tokenizer.json")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(rows))
    last_line_refused(out, commands_with_data(model, out, text)[command], f"{text}: row 7: token 8192", "<sep>")


@pytest.mark.parametrize("command", COMMANDS_WITH_DATA)
def test_a_chat_that_the_template_refuses_names_its_row(model, out, tmp_path, command):
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ '<' + m['content'] + '>' }}{% endfor %}")
    data = tmp_path / "rows.jsonl"
    rows = [[{"role": "user", "content": content}] for content in ["the river and the stone"] * 4 + [None]]
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    last_line_refused(out, commands_with_data(model, out, data)[command], f"[text] {data}: row 5: ")


def test_a_prompt_with_a_token_outside_the_model(model, out):
    tokenizer_with_more(model, 8192, "<sep>")
    refused(out, ["generate", "--model", model, "--prompt", "a <sep> b"], "the prompt: token 8192", "<sep>", "table of 8192")


@pytest.mark.parametrize("command", ["convert", "dwq"])
def test_output_that_exists(good, out, tmp_path, command):
    (out / "result").mkdir()
    (out / "result" / "notes.txt").write_text("dear to someone")
    arguments = convert(good, out) if command == "convert" else dwq(good, out, text_rows(tmp_path / "rows.jsonl"))
    refused(out, arguments, out / "result", "--mlx-path")


def test_output_that_is_a_dangling_link(good, out):
    (out / "result").symlink_to(out / "nowhere")
    run(*convert(good, out), code=1)
    assert [p.name for p in out.iterdir()] == ["result"] and (out / "result").is_symlink()


@pytest.mark.parametrize("flag,value", [("bits", 7), ("bits", 1), ("bits", 9), ("group-size", 48)])
def test_formats_that_do_not_exist(good, out, tmp_path, flag, value):
    refused(out, convert(good, out, f"--q-{flag}", value), value, "choose")
    data = text_rows(tmp_path / "rows.jsonl")
    refused(out, dwq(good, out, data, f"--{flag}", value), value, "choose")


def test_mode_that_does_not_exist(good, out):
    refused(out, convert(good, out, "--q-mode", "mxfp5"), "mxfp5", "nvfp4")
    refused(out, convert(good, out, "--q-mode", "mxfp4", "--q-bits", 3), "mxfp4", "3 bits")


def test_wrong_usage(good, out, tmp_path):
    data = text_rows(tmp_path / "rows.jsonl")
    done = run(code=2)  # alone: a line a command, on stderr for it is no result
    assert done.stdout == "" and done.stderr.startswith("lquant learns") and "Usage: lquant COMMAND [OPTIONS]\n" in done.stderr
    for command in ("dwq", "convert", "perplexity", "generate"):
        assert len([line for line in done.stderr.splitlines() if line.startswith(f"  {command} ")]) == 1
    for word in ("abacus", "--abacus"):
        refused(out, [word], word, "dwq", "convert", code=2)
    for command in ("dwq", "generate", "perplexity", "logits"):
        refused(out, [command], "--model", f"lquant {command} --help", code=2)
    refused(out, ["convert"], "--hf-path", code=2)
    refused(out, convert(good, out, "--abacus"), "--abacus", code=2)
    refused(out, convert(good, out, "-d"), "--quantize", "--dequantize", code=2)
    refused(out, ["convert", "--hf-path", good, "--dtype", "int8"], "--dtype", "int8", code=2)
    refused(out, dwq(good, out, data, "--bits", "three"), "--bits", "three", code=2)
    refused(out, dwq(good, out, data, "--batch-size", 0), "--batch-size", code=2)
    refused(out, dwq(good, out, data, "--learning-rate", "-1"), "--learning-rate", code=2)
    refused(out, dwq(good, out, data, "--targets-only"), "--targets-only", "--target-dir", code=2)
    refused(out, dwq(good, out, data, "--targets", "all"), "--targets", "all", code=2)


def test_data_that_is_not_there(good, out):
    refused(out, dwq(good, out, out / "rows.jsonl"), out / "rows.jsonl", "--data-path")
    refused(out, ["perplexity", "--model", good, "--data-path", out / "text.txt"], out / "text.txt")
    refused(out, ["logits", "--model", good, "--ids", out / "ids.json", "--output", out / "logits"], out / "ids.json")


def test_a_mistaken_path_does_not_stand_in_the_way(good, out, tmp_path):
    refused(out, dwq(good, out, out / "rows.jsonl"), "rows.jsonl")
    run(*dwq(good, out, text_rows(tmp_path / "rows.jsonl")), cwd=out)
    assert [p.name for p in out.iterdir()] == ["result"]


def test_model_of_the_hub(out):
    refused(out, convert("mlx-community/abacus-4bit", out), "mlx-community/abacus-4bit", "cannot be reached", "give a folder")
    refused(out, convert(out / "nowhere", out), out / "nowhere")


def test_what_is_quantized_already(packed, good, out):
    refused(out, convert(packed, out), packed, "--dequantize")
    refused(out, ["convert", "--hf-path", good, "-d", "--mlx-path", out / "result"], good, "not quantized")


def test_student_that_is_not_quantized(good, out, tmp_path):
    arguments = ["--data-path", text_rows(tmp_path / "rows.jsonl"), "--num-samples", 8, "--mlx-path", out / "result"]
    refused(out, ["dwq", "--model", good, *arguments, "--quantized-model", good], good, "--quantized-model")


def test_targets_of_another_model(good, out, tmp_path):
    data, other = text_rows(tmp_path / "rows.jsonl"), random_model(tmp_path / "other", seed=9)
    targets = tmp_path / "targets"
    run(*dwq(other, out, data, "--target-dir", targets, "--targets-only"))
    before = tree(targets)
    refused(out, dwq(good, out, data, "--target-dir", targets), targets, "another model")
    refused(out, dwq(other, out, data, "--target-dir", targets, "--targets", "topk"), targets, "--target-dir")
    assert tree(targets) == before


def test_run_folder_of_other_options(good, out, tmp_path):
    data = text_rows(tmp_path / "rows.jsonl")
    with_limit = dict(preexec_fn=lambda: limit_files(300_000))  # the small units are saved, the embedding's is too large
    run(*dwq(good, out, data), code=1, **with_limit)
    assert (out / "result.lquant-run").is_dir()
    refused(out, dwq(good, out, data, "--seed", 5), out / "result.lquant-run", "seed (was 123, now 5)", "--fresh")
    run(*dwq(good, out, data, "--seed", 5, "--fresh"))
    assert [p.name for p in out.iterdir()] == ["result"]
    assert json.loads((out / "result" / "lquant.json").read_text())["options"]["seed"] == 5


def test_full_disk_at_the_first_unit(good, out, tmp_path):
    refused(out, convert(good, out), "result.lquant-run", "cannot be written", "free space", preexec_fn=lambda: limit_files(100_000))


def test_full_disk_while_the_result_is_written(good, out):
    """Each unit fits (the packed embedding has 590 kB), the whole does not: the run can be continued once there is room."""
    done = run(*convert(good, out), code=1, preexec_fn=lambda: limit_files(650_000))
    assert done.stderr.strip().split("\n")[-1].startswith("lquant: [checkpoint]")
    assert [p.name for p in out.iterdir()] == ["result.lquant-run"]
    run(*convert(good, out))
    assert [p.name for p in out.iterdir()] == ["result"]
    other = out.parent / "other"
    run("convert", "--hf-path", good, "-q", "--mlx-path", other)
    assert tree(other) == tree(out / "result")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
def test_log_that_cannot_be_written(good, out, tmp_path):
    """Neither a message nor a progress line that finds no room changes how the program ends."""

    def exit_code(*arguments):
        with open("/dev/full", "w") as full:
            return subprocess.run([LQUANT, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=full, env=ENVIRONMENT, timeout=300).returncode

    assert exit_code("nonsense") == 2
    assert exit_code("dwq", "--bits", "many") == 2
    assert exit_code("convert", "--hf-path", tmp_path / "nothing", "--mlx-path", out / "result") == 1
    assert exit_code(*dwq(good, out, text_rows(tmp_path / "rows.jsonl"))) == 0
    assert [p.name for p in out.iterdir()] == ["result"]


def test_logits_of_ids_that_do_not_exist(good, out, tmp_path):
    for ids in ([[8192]], [[-1]], [[1, 2], [3]], [], [[1.5]], {"a": 1}):
        file = tmp_path / "ids.json"
        file.write_text(json.dumps(ids))
        refused(out, ["logits", "--model", good, "--ids", file, "--output", out / "logits"], file)


@pytest.mark.parametrize(
    "content,part",
    [
        ("{", "is not JSON (line 1, column 2)"),
        ("[" * 60_000, "is not JSON (nested more than 200 deep)"),
        ('{"' + "a" * 60_000 + '": false}', "has no such linear"),
        ('{"model.embed_tokens": {"bits": 4.5}}', '"model.embed_tokens.bits" is 4.5, not a whole number'),
        ('{"model.embed_tokens": {"bits": 7}}', "model.embed_tokens: affine weights of 7 bits do not exist"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "gptq", "awq", "dwq"])
def test_a_damaged_plan_is_named(good, out, tmp_path, command, content, part):
    plan = tmp_path / "plan.json"
    plan.write_text(content)
    rows = text_rows(tmp_path / "rows.jsonl", 4)
    given = ["-q"] if command == "convert" else ["--data-path", rows]
    done = run(command, "--model", good, "--mlx-path", out / "result", "--plan", plan, *given, code=1)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("lquant: [") and f"{plan}: " in last and part in last, last
    assert len(last) < len(str(plan)) + 400 and not tree(out)


def test_a_pipe_is_not_waited_for(good, out, tmp_path):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    refused(out, convert(good, out, "--plan", pipe), pipe, "is not a regular file but a pipe")
    last_line_refused(out, dwq(good, out, pipe), pipe, "is not a regular file but a pipe")
    refused(out, ["logits", "--model", good, "--ids", pipe, "--output", out / "logits.safetensors"], pipe, "is not a regular file but a pipe")


def test_a_record_of_other_types_does_not_end_a_run(good, out, model):
    (model / "lquant.json").write_text('{"source": {"repo": 5, "revision": ["x"], "card": {"a": 1}}}')
    run(*convert(model, out))
    assert set(json.loads((out / "result" / "lquant.json").read_text())["source"]) == {"name", "sha256"}


def test_what_the_file_system_refuses_is_a_sentence_of_ours(good, out):
    name = "a" * 300  # no file system takes it
    refused(out, ["convert", "--hf-path", good, "-q", "--mlx-path", out / name], f"[cli] {out / name}: cannot be used (File name too long)")
