"""Damaged inputs of every kind, one at a time, against the built program: what it must never do is crash, hang, take memory without bound, or refuse
in words that do not say which file is meant.

    LQUANT=build/lquant python tests/fuzz/mutate.py [--count 5000] [--seed 1] [--only config,rows] [--keep folder]

Each input is a sound file with one to three changes, of its structure (keys dropped, types changed, numbers huge, negative or not numbers, strings
and nesting very long) or of its bytes (flipped, cut, repeated). The program gets the cheapest command that reads the file, six seconds and 1 GB. The
sequence follows from the seed alone."""

import argparse
import collections
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from support import LQUANT, TINY, chat_rows, random_model, run, sentences, text_rows, write_rows  # noqa: E402

SECONDS, BYTES = 6, 1 << 30
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", HF_ENDPOINT="http://127.0.0.1:9", LQUANT_SAVE_SECONDS="0")
# Tags of the rooms whose errors are for users; kernels' are for callers.
ROOMS = "base checkpoint run text artifact codec model plan calibration quantize evaluate hub pipeline cli logits generate".split()
# A word in brackets that is no room's tag is a library's, unless it is a list in JSON that is shown.
LIBRARY = re.compile(
    r"json\.exception|panicked|bad_alloc|std::|basic_string|vector::|map::at|unordered_map|stoi|stod|invalid_argument|filesystem error"
    r"|\[(?!(?:null|true|false|" + "|".join(ROOMS) + r")\])[a-z_]+\] |iostream|SIG[A-Z]+"
)
LONGEST = 600

# ---------------------------------------------------------------------------------------------------------------------- changes

ODD_NUMBERS = [0, -1, 1, 2, 3, 7, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1, -(1 << 63), 0.5, -0.0, 1e308, -1e308, 1e-320, 10**30]
ODD_TEXTS = ["", " ", "\0", "null", "../../etc/passwd", "/", "a" * 100_000, "\ud83d\ude00" * 50, "%s%n", "{{ x }}", "{" * 60_000, "é" * 40_000, "\x1b[31m", "llama", "bfloat16", "<|endoftext|>"]


def odd_value(rng, old=None):
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(ODD_NUMBERS)
    if kind == 1:
        return rng.choice(ODD_TEXTS)
    if kind == 2:
        return rng.choice([None, True, False, [], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"b": {"c": 1}}}])
    if kind == 3 and isinstance(old, int) and not isinstance(old, bool):
        return rng.choice([old + 1, old - 1, old * 2, -old, old * 1000003, str(old), [old], float(old), old / 2])
    if kind == 4:
        return float("nan") if rng.random() < 0.5 else float("inf")
    if kind == 5:
        return "@DEEP@" if rng.random() < 0.5 else ["x"] * rng.choice([1000, 100_000])
    if kind == 6 and isinstance(old, str):
        return rng.choice([old * 2, old[:-1], old.upper(), old + "\0", old[::-1], [old], {"content": old}])
    return rng.choice(ODD_NUMBERS)


def places(value, at=()):
    """Every path into a JSON value, leaves and inner ones; a long list counts by its first and last entries."""
    yield at
    if isinstance(value, dict):
        for key in list(value)[:200]:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for i in list(range(min(len(value), 4))) + ([len(value) - 1] if len(value) > 4 else []):
            yield from places(value[i], (*at, i))


def get(value, at):
    for key in at:
        value = value[key]
    return value


def change_json(rng, value):
    """One change of structure. Most are near the top, where most programs look."""
    value = json.loads(json.dumps(value))
    every = [p for p in places(value) if p]
    if not every:
        return odd_value(rng)
    at = rng.choice([p for p in every if len(p) == 1] if rng.random() < 0.5 else every)
    parent, key = get(value, at[:-1]), at[-1]
    kind = rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(ODD_TEXTS)[:1000] or "x"] = parent.pop(key)
    elif kind == 2:
        other = rng.choice(every)
        parent[key] = json.loads(json.dumps(get(value, other)))
    elif kind == 3 and isinstance(parent, list):
        parent.insert(key, odd_value(rng, parent[key]))
    else:
        parent[key] = odd_value(rng, parent[key])
    return value


DEEP = 50_000


def as_json(rng, value):
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if "@DEEP@" in text:
        opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
        text = text.replace('"@DEEP@"', opened * DEEP + "1" + closed * DEEP)
    return text.encode("utf-8", "surrogatepass")


def change_bytes(rng, content):
    content = bytearray(content)
    kind = rng.randrange(7)
    at = rng.randrange(len(content) + 1)
    if kind == 0 and content:
        for _ in range(rng.choice([1, 1, 8])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        content = content[:at]
    elif kind == 2:
        content[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 64])))
    elif kind == 3:
        content[at:at] = content[at : at + 200]
    elif kind == 4:
        del content[at : at + rng.choice([1, 3, 100])]
    elif kind == 5:
        content = bytearray() if rng.random() < 0.3 else bytearray(b"\xff\xfe") + content
    else:
        content[at:at] = rng.choice([b"\0", b"\xff", b'"', b"}", b"[" * 60_000, b"-", b"1e999", b"\\u0000", b"\\ud800", b"/*x*/", b"NaN"])
    return bytes(content)


def change_file(rng, file):
    """Changes a JSON file's structure or any file's bytes."""
    content = file.read_bytes()
    value = None
    if file.suffix in (".json",) and rng.random() < 0.8:
        value = json.loads(content)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            value = change_json(rng, value)
        file.write_bytes(as_json(rng, value))
    elif file.suffix == ".jsonl" and rng.random() < 0.8:
        lines = content.split(b"\n")
        i = rng.randrange(len(lines) - 1)
        lines[i] = as_json(rng, change_json(rng, json.loads(lines[i])))
        file.write_bytes(b"\n".join(lines))
    else:
        file.write_bytes(change_bytes(rng, content))


def change_header(rng, file):
    """A safetensors file's header, with the length that goes with it or another one."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    text = as_json(rng, change_json(rng, header)) if rng.random() < 0.8 else change_bytes(rng, content[8 : 8 + size])
    length = len(text) if rng.random() < 0.9 else rng.choice([0, 1, len(text) + 1, 1 << 40, (1 << 64) - 1])
    file.write_bytes(struct.pack("<Q", length) + text + data)


TEMPLATE_PARTS = [
    "{{ x }}", "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{% if true %}", "{% endif %}", "{{ 'a' * 10000000000 }}", "{{ 'a'|indent(10000000000) }}",
    "{{ '%1000000000d' % 1 }}", "{{ '{:>1000000000}'.format(1) }}", "{% for i in range(1000000000) %}x{% endfor %}", "{{ range(10000000)|list|length }}",
    "{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{{ 1" + " + 1" * 100_000 + " }}", "{{ x" + "|upper" * 100_000 + " }}", "{{ x" + "[0]" * 100_000 + " }}", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "not " * 100_000 + "1 }}", "{{ " + "-" * 100_000 + "1 }}", "{{ " + "[" * 50_000 + "]" * 50_000 + " }}", "{{ x" + ".a" * 100_000 + " }}", "{% if 1 %}" * 20_000, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set ns = namespace(l=[0]) %}{% for i in range(40) %}{% set ns.l = ns.l + ns.l %}{% endfor %}", "{{ messages|tojson(indent=1000000000) }}",
    "{{ 'a'|center(10000000000) }}", "{{ 'abc'|replace('', 'x' * 100000)|replace('x', 'y' * 100000) }}", "{{ 'a,' * 1000000 }}", "{{ ('a' * 100000)|list|join('b' * 100000) }}",
    "{{ raise_exception('no') }}", "{% include 'x' %}", "{% extends '/etc/passwd' %}", "{{ 2 ** 10000000 }}", "{{ 1 / 0 }}", "{{ 1 // 0 }}", "{{ undefined.a.b }}", "\0", "{#", "{%", "{{",
    "{{ messages[0]['content'].split('')|length }}", "{{ 'x'.join(['y' * 1000000] * 1000000) }}", "{{ 'a'.zfill(10000000000) }}", "{{ 'a'.ljust(10000000000) }}", "{{ strftime_now('%Y' * 100000) }}",
    "{{ lipsum(1000000) }}", "{{ dict(a=1) }}", "{{ 'é'.encode() }}", "{{ ''.__class__ }}", "{% raw %}", "{% call f() %}", "{% filter upper %}", "{% set a = a %}", "{{ loop }}",
]  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def change_template(rng, file):
    text = TEMPLATE
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1) if rng.random() < 0.4 else rng.choice([0, len(text)])
        text = text[:at] + rng.choice(TEMPLATE_PARTS) + text[at:]
    content = text.encode("utf-8", "surrogatepass")
    file.write_bytes(change_bytes(rng, content) if rng.random() < 0.2 else content)


NORMALIZERS = [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, {"type": "Replace", "pattern": {"Regex": "."}, "content": "xxxxxxxxxxxxxxxx"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAAgAAAAAA="}, {"type": "Precompiled", "precompiled_charsmap": "/////w=="}, {"type": "Prepend", "prepend": "a" * 10_000},
    {"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, {"type": "Nope"}, {"type": "ByteLevel"},
]  # fmt: skip


def change_tokenizer(rng, file):
    if rng.random() < 0.7:
        change_file(rng, file)
        return
    value = json.loads(file.read_bytes())
    chain = [rng.choice(NORMALIZERS) for _ in range(rng.choice([1, 2, 30]))]
    if rng.random() < 0.5:
        chain = [NORMALIZERS[0]] * 40
    value[rng.choice(["normalizer", "normalizer", "decoder", "pre_tokenizer"])] = {"type": "Sequence", "normalizers": chain, "pretokenizers": chain, "decoders": chain}
    file.write_bytes(json.dumps(value).encode())


# ------------------------------------------------------------------------------------------------------------------------ inputs


class Input:
    """A sound folder, the file in it that is changed, how, and the command that reads it."""

    def __init__(self, folder, files, command, change=change_file):
        self.folder, self.files, self.command, self.change = folder, files, command, change


def small_tokenizer(folder):
    """The first 300 tokens of the embedded model's tokenizer and the merges among them: read in a moment."""
    value = json.loads((TINY / "tokenizer.json").read_text())
    vocabulary = {token: i for token, i in value["model"]["vocab"].items() if i < 300}
    value["model"]["vocab"] = vocabulary
    joined = lambda merge: merge if isinstance(merge, list) else merge.split(" ")  # noqa: E731
    value["model"]["merges"] = [m for m in value["model"]["merges"] if all(p in vocabulary for p in joined(m)) and "".join(joined(m)) in vocabulary]
    (folder / "tokenizer.json").write_text(json.dumps(value))


def make_inputs(root):
    sizes = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1, head_dim=32, vocab_size=300)

    def model(place, **more):
        made = random_model(root / place / "model", **{**sizes, **more})
        small_tokenizer(made)
        return made

    made = {}
    few = ["--num-samples", 2, "--sequence-length", 8]
    read = ["perplexity", "--model", "model", "--data-path", "rows.jsonl", *few]
    logits = ["logits", "--model", "model", "--ids", "ids.json", "--output", "logits.safetensors"]

    def add(name, files, command, change=change_file, prepare=lambda folder: None, **more):
        place = root / name
        model(name, **more)
        (place / "ids.json").write_text("[[1, 2, 3]]")
        text_rows(place / "rows.jsonl", count=4, words=6)
        prepare(place)
        made[name] = Input(place, files, command, change)

    add("config", ["model/config.json"], logits)
    add("quantized config", ["model/config.json"], logits, prepare=lambda f: quantize(f / "model"))
    add("headers", ["model/model.safetensors"], logits, change_header)
    add("index", ["model/model.safetensors.index.json"], logits, prepare=split)
    add("tokenizer", ["model/tokenizer.json"], read, change_tokenizer)
    add("tokenizer_config", ["model/tokenizer_config.json"], ["generate", "--model", "model", "--prompt", "a river", "--max-tokens", 1])
    chat = lambda f: (chat_rows(f / "rows.jsonl", 4), (f / "model" / "chat_template.jinja").write_text(TEMPLATE))  # noqa: E731
    add("template", ["model/chat_template.jinja"], read, change_template, prepare=chat)
    add("rows", ["rows.jsonl"], read)
    add("chat rows", ["rows.jsonl"], read, prepare=chat)
    pairs = lambda f: write_rows(f / "rows.jsonl", [{"prompt": a, "completion": b} for a, b in zip(sentences(4), sentences(4, 1))])  # noqa: E731
    add("pairs", ["rows.jsonl"], read, prepare=pairs)
    add("token rows", ["rows.jsonl"], read, prepare=lambda f: write_rows(f / "rows.jsonl", [{"tokens": [i, 5, 6]} for i in range(4)]))
    add("ids", ["ids.json"], logits)
    plan = {"model.embed_tokens": {"bits": 6}, "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}, "model.layers.0.self_attn.q_proj": False}
    convert = ["convert", "--model", "model", "-q", "--mlx-path", "result"]
    add("plan", ["plan.json"], [*convert, "--plan", "plan.json"], prepare=lambda f: (f / "plan.json").write_text(json.dumps(plan)))
    dynamic = ["dynamic_quant", "--model", "model", "--data-path", "rows.jsonl", *few, "--target-bpw", 5, "--plan-only", "plan.json"]
    for suffix in ("sensitivities.json", "sensitivities.lquant.json"):
        add(suffix, [f"model_{suffix}"], [*dynamic, "--sensitivities", f"model_{suffix}"], prepare=lambda f: find_sensitivities(f, dynamic))
    add("sensitivities alone", ["model_sensitivities.json"], [*dynamic, "--sensitivities", "model_sensitivities.json"], prepare=lambda f: find_sensitivities(f, dynamic, alone=True))
    evaluate = ["evaluate", "--model", "model", "--tasks", "arc_easy", "--data-dir", "data", "--output-dir", "results"]
    question = {"id": "1", "question": "What is red?", "choices": {"text": ["fire", "ice"], "label": ["1", "2"]}, "answerKey": "2"}
    add("questions", ["data/arc_easy/test.jsonl"], evaluate, prepare=lambda f: ((f / "data" / "arc_easy").mkdir(parents=True), write_rows(f / "data" / "arc_easy" / "test.jsonl", [question] * 3)))
    add("record", ["model/lquant.json"], ["upload", "--path", "model", "--upload-repo", "a/b", "--dry-run"], prepare=lambda f: quantize(f / "model"))
    add("scales", ["scaled/scales.awq", "scaled/lquant.json"], ["gptq", "--model", "model", "--scales", "scaled", "--data-path", "rows.jsonl", *few, "--mlx-path", "result"], change_either,
        prepare=lambda f: call(f, ["awq", "--model", "model", "--data-path", "rows.jsonl", *few, "--n-grid", 2, "--mlx-path", "scaled"]))  # fmt: skip
    add("gguf", ["model.gguf"], ["logits", "--model", "model.gguf", "--ids", "ids.json", "--output", "logits.safetensors"], prepare=as_gguf)
    gptq = ["gptq", "--model", "model", "--data-path", "rows.jsonl", *few, "--mlx-path", "result"]
    add("units", ["result.lquant-run/*"], gptq, change_either, prepare=lambda f: interrupted(f, gptq), num_hidden_layers=2)
    return made


def change_either(rng, file):
    change_header(rng, file) if file.suffix != ".json" and rng.random() < 0.5 else change_file(rng, file)


def call(folder, command):
    run(*command, cwd=folder)


def quantize(model):
    run("convert", "--model", model, "-q", "--mlx-path", model.parent / "packed")
    shutil.rmtree(model)
    (model.parent / "packed").rename(model)


def split(folder):
    import mlx.core as mx

    weights = mx.load(str(folder / "model" / "model.safetensors"))
    names = sorted(weights)
    files = {name: f"model-0000{1 + (i > len(names) // 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        mx.save_safetensors(str(folder / "model" / file), {n: weights[n] for n in names if files[n] == file}, metadata={"format": "mlx"})
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))


def find_sensitivities(folder, command, alone=False):
    """Both files; `alone`: without lquant's own, which would be read in the other's place."""
    call(folder, command)
    (folder / "plan.json").unlink()
    if alone:
        (folder / "model_sensitivities.lquant.json").unlink()


def as_gguf(folder):
    from gguf_files import write_gguf

    write_gguf(folder / "model", folder / "model.gguf")


def interrupted(folder, command):
    """The run folder of a run that ended before its last unit."""
    process = subprocess.Popen([LQUANT, *map(str, command)], cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (folder / "result.lquant-run" / "block-00000.safetensors").exists():
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert (folder / "result.lquant-run" / "journal.json").exists() and not (folder / "result").exists()


# ------------------------------------------------------------------------------------------------------------------------- judging


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def judge(place, input_, names):
    """None when all is well, else what is wrong and the sentence that was given."""
    command = [LQUANT, *map(str, input_.command)]
    process = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, preexec_fn=limit, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        stderr = process.communicate(timeout=SECONDS)[1].decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "hang"
    code = process.returncode
    if code < 0:
        return f"crash: {signal.Signals(-code).name}"
    if code == 0:
        return None
    if code not in (1, 2):
        return f"exit code {code}"
    last = stderr.rstrip("\n").split("\n")[-1]
    if not last.startswith("lquant: "):
        return f"the last line is no sentence of ours: {last[:200]}"
    if stderr.count("lquant: [") > 1:
        return f"more than one sentence: {stderr[-400:]}"
    if len(last) > LONGEST:
        return f"a sentence of {len(last)} characters: {last[:200]}"
    if LIBRARY.search(last):
        return f"a library's text: {last[:300]}"
    if any(ord(c) < 32 for c in last):
        return f"control characters: {last[:300]!r}"
    if not any(name in last for name in names):
        return f"no file is named: {last[:300]}"
    return None


def mutations(inputs, root, seed, count, only=None):
    """Yields (number, name of the input, what is wrong or None, folder)."""
    names = [name for name in inputs if not only or name in only]
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        name = names[number % len(names)]
        chosen = inputs[name]
        place = root / "work"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(chosen.folder, place, symlinks=True)
        files = sorted(f for pattern in chosen.files for f in place.glob(pattern) if f.is_file() and f.stat().st_size > 0)
        file = rng.choice(files)
        chosen.change(rng, file)
        # A fault of one file may show in another of the same model: both names say where to look.
        named = [file.name, "model/", "model:", "model ", "model.gguf", "scaled"] if "rows" not in name else [file.name]
        yield number, name, judge(place, chosen, named), place


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=5000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", type=lambda text: text.split(","))
    arguments.add_argument("--keep", type=Path, help="where inputs that found something are copied")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = collections.Counter()
        for number, name, wrong, place in mutations(make_inputs(root), root, options.seed, options.count, options.only):
            if wrong:
                found[name, wrong.split(": ")[0]] += 1
                print(f"{number} {name}: {wrong}", flush=True)
                if options.keep:
                    shutil.copytree(place, options.keep / f"{options.seed}-{number}", dirs_exist_ok=True)
            elif number % 500 == 499:
                print(f"{number + 1} of {options.count}", flush=True)
        for (name, wrong), times in sorted(found.items()):
            print(f"{times:5} {name}: {wrong}")
        print(f"{options.count} inputs, {sum(found.values())} found something")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
