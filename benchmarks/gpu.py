"""`make bench-gpu`: lquant and mlx_lm on one GPU, in one run, on models of random weights in published shapes.

Every figure of a group is taken in the same round, ours and the peer's one after the other on the same rows: whole commands, but for DWQ, whose rates are those of
steps without the first two. What the card holds is read from nvidia-smi while a command runs. The table gives minimum, median and maximum over rounds.

    python benchmarks/gpu.py [--shape qwen3-0.6b] [--methods dwq awq dynamic gptq] [--rounds 3] [--json results.json]
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import mlx.core as mx
from bench import ROOT, Table, dynamic_round, method_round, ours, peer, rows_of_ids, run, weights_in_products

SHAPES = {
    "qwen3-0.6b": dict(model_type="qwen3", hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                       intermediate_size=3072, vocab_size=151936, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=40960),
    "llama-3.1-8b": dict(model_type="llama", hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                         intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False, rms_norm_eps=1e-5, rope_theta=5e5, max_position_embeddings=131072),
}


def make_model(shape, tokenizer, folder):
    """Random bf16 weights in a published shape, with the small model's tokenizer: its ids are among the shape's."""
    config = dict(SHAPES[shape], torch_dtype="bfloat16")
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    mx.random.seed(0)
    matrix = lambda *size: mx.random.normal(size, mx.bfloat16, scale=0.02)
    ones = lambda size: mx.ones(size, mx.bfloat16)
    weights = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": ones(hidden)}
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        block = {"self_attn.q_proj": matrix(queries, hidden), "self_attn.k_proj": matrix(keys, hidden), "self_attn.v_proj": matrix(keys, hidden),
                 "self_attn.o_proj": matrix(hidden, queries), "mlp.gate_proj": matrix(wide, hidden), "mlp.up_proj": matrix(wide, hidden),
                 "mlp.down_proj": matrix(hidden, wide), "input_layernorm": ones(hidden), "post_attention_layernorm": ones(hidden)}
        if config["model_type"] == "qwen3":
            block |= {"self_attn.q_norm": ones(head), "self_attn.k_norm": ones(head)}
        weights |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in block.items()}
    folder.mkdir(parents=True)
    shards, size = [{}], 0
    for name, tensor in weights.items():
        if size > 4e9:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    index = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        index |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)


def gemm_rate(size=8192):
    """Operations a second of this card's bf16 products."""
    a, b = (mx.random.normal((size, size)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(a, b)
    best = 0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(10):
            mx.eval(a @ b)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - start))
    return best


@contextlib.contextmanager
def card_memory(table, group, name):
    """Adds the most that nvidia-smi says is used meanwhile, of all processes."""
    most, done = [0], threading.Event()

    def watch():
        while not done.wait(0.2):
            said = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout.split()
            if said:
                most[0] = max(most[0], int(said[0]) * 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        table.add(group, f"{name}: on the card", most[0] / 1e9, "GB")


def dwq_round(table, args, model, rate):
    group = f"DWQ, {model.name}, {args.bits} bits, steps of {args.batch_size} rows of {args.length}"
    texts, _ = rows_of_ids(model, args.length, args.batch_size * (args.steps + 1))
    _, rows = rows_of_ids(model, args.length + 1, args.batch_size * (args.peer_steps + 1))
    rates = {}
    for codes in ("move", "fixed"):
        with card_memory(table, group, f"lquant, codes {codes}"):
            result = ours(args.build / "lquant", model, texts, args.length, args.batch_size, args.bits, codes)
        rates[codes] = result["later_tokens_per_second"]
        table.add(group, f"lquant, codes {codes}", rates[codes], "tokens/s")
        table.add(group, f"lquant, codes {codes}: efficiency", 8 * weights_in_products(model) * rates[codes] / rate, "of the bf16 GEMM rate")
    with card_memory(table, group, "mlx_lm"):
        theirs = peer(model, [(row * 9)[: args.length + 1] for row in rows], args.batch_size, args.bits)
    table.add(group, "mlx_lm", theirs["later_tokens_per_second"], "tokens/s")
    for codes, own in rates.items():
        table.add(group, f"ratio, codes {codes}", own / theirs["later_tokens_per_second"], "times as fast")


def gptq_round(table, args, model):
    """Ours alone: mlx_lm takes over a quarter of an hour for the smaller shape."""
    group = f"GPTQ, {model.name}, {args.bits} bits, 128 rows of 512"
    texts, _ = rows_of_ids(model, 516, 128)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        for name, switches in {"": [], " without correction": ["--asymmetric", "off"]}.items():
            start = time.perf_counter()
            with card_memory(table, group, f"lquant{name}"):
                run([args.build / "lquant", "gptq", "--model", model, "--mlx-path", Path(folder, f"ours{name}"), "--data-path", Path(folder, "rows.jsonl"),
                     "--num-samples", 128, "--sequence-length", 512, "--bits", args.bits, *switches])
            table.add(group, f"lquant{name}", time.perf_counter() - start, "s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build folder")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "models" / "tiny", help="folder with the tokenizer's files")
    parser.add_argument("--methods", nargs="+", choices=["dwq", "awq", "dynamic", "gptq"], default=["dwq", "awq", "dynamic", "gptq"])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4, help="rows in a step of DWQ")
    parser.add_argument("--length", type=int, default=1024, help="tokens in its rows")
    parser.add_argument("--steps", type=int, default=40, help="steps of ours")
    parser.add_argument("--peer-steps", type=int, default=12, help="steps of the peer's")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    if mx.default_device() != mx.gpu:
        sys.exit("bench-gpu: MLX has no GPU here; on NVIDIA's, put mlx[cuda13] in the place of mlx[cpu] (README)")

    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, args.shape)
        make_model(args.shape, args.tokenizer, model)
        for turn in range(args.rounds):
            print(f"bench-gpu: round {turn + 1} of {args.rounds}", file=sys.stderr)
            rate = gemm_rate()
            mx.clear_cache()
            table.add("This card", "GEMM rate, bf16", rate / 1e12, "TFLOP/s")
            rounds = {
                "dwq": lambda: dwq_round(table, args, model, rate),
                "awq": lambda: method_round(table, args, model, "awq", 32, {"": ["--embed-group-size", 64]}, ["--n-grid", 10]),
                "dynamic": lambda: dynamic_round(table, args, model, 32),
                "gptq": lambda: gptq_round(table, args, model),
            }
            for method in args.methods:
                rounds[method]()
                if args.json:  # what is there is there, whatever becomes of the rest
                    args.json.write_text(json.dumps({"cores": os.cpu_count(), "figures": list(table.rows())}, indent=1) + "\n")
    print(table.markdown())


if __name__ == "__main__":
    main()
