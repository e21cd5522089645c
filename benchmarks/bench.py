"""`make bench`: how fast lquant is, as ratios that mean the same on every machine.

  * to mlx_lm, doing the same on the same rows;
  * to this machine's own matrix products, measured in the same round: DWQ costs 8 operations for every weight of a linear and
    every token (teacher 2, student 2, its gradients 4), so tokens/s x 8 x weights / peak is the share of the machine that is used;
  * to MLX's own op, where a benchmark has a twin on it.

A round measures everything once, ours and the peer side by side; the table gives minimum, median and maximum over rounds.

    python benchmarks/bench.py [--model FOLDER ...] [--rounds 3] [--json results.json]
"""

import argparse
import json
import math
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The kernels' figures that a table can hold: one or two rows of each benchmark program (the shapes of a 135M model).
KERNELS = {
    "linear": "(576/1536|2048/2048)",
    "attention": "",
    "head_loss": "kl",
    "codec": "(Quantize|Dequantize|Gradient|RangeSearch)",
    "elementwise": "RmsNorm.*1024/576",
}


def run(command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def microbenchmarks(program, filter):
    """[(name, figures)] of a Google Benchmark program."""
    out = json.loads(run([program, f"--benchmark_filter={filter}", "--benchmark_format=json", "--benchmark_min_time=0.2"]))
    return [(re.sub(r"/(real_time|process_time|iterations:\d+|min_time:[\d.]+)", "", b["name"]), b) for b in out["benchmarks"]]


def gemm_peaks(build):
    """The best rate of this machine's matrix products by dtype, in operations a second."""
    rows = microbenchmarks(build / "benchmarks" / "bench_gemm", "(1536/576|2048/2048|49152/576)")
    return {dtype: max(b["GFLOP/s"] for name, b in rows if dtype in name) * 1e9 for dtype in ("bf16", "f32")}


def weights_in_products(model):
    """Weights that meet every token: all matrices but an embedding that is only looked up. None for a mixture of experts."""
    config = json.loads((model / "config.json").read_text())
    total, head = 0, False
    for file in sorted(model.glob("*.safetensors")):
        with open(file, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        for name, info in header.items():
            if name == "__metadata__" or len(info["shape"]) < 2:
                continue
            if "experts" in name:
                return None
            head |= name.startswith("lm_head")
            total += math.prod(info["shape"])
    if head and not config.get("tie_word_embeddings", False):
        total -= config["vocab_size"] * config["hidden_size"]
    return total


def rows_of_ids(model, length, count):
    """Texts of the project's own pages as `count` rows of at most `length` tokens that survive being written as text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    pages = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")) + sorted(ROOT.glob("src/**/*.h"))
    ids = [i for page in pages for i in tokenizer.encode(page.read_text(encoding="utf-8"), add_special_tokens=False).ids]
    texts = [tokenizer.decode(ids[start % len(ids) :][: length - 4]) for start in range(0, count * length, length)]
    return texts, [tokenizer.encode(text).ids[:length] for text in texts]


def ours(lquant, model, texts, length, batch, bits, codes):
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        data.mkdir()
        lines = [json.dumps({"text": t}) + "\n" for t in texts]
        (data / "valid.jsonl").write_text(lines[0])
        (data / "train.jsonl").write_text("".join(lines[batch:]))
        out = run([lquant, "dwq", "--model", model, "--mlx-path", Path(folder, "out"), "--data-path", data, "--bits", bits, "--max-seq-length", length,
                   "--num-samples", len(lines) - batch, "--num-valid", 1, "--batch-size", batch, "--codes", codes, "--json"])
    return json.loads(out)


def peer(model, rows, batch, bits):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rows, file)
        file.flush()
        return json.loads(run([sys.executable, ROOT / "benchmarks" / "peer_dwq.py", "--model", model, "--rows", file.name, "--batch-size", batch, "--bits", bits]))


def method_round(table, args, model, method, rows, variants, options=()):
    """Whole commands, from start to the written folder, on the same rows: ours in each of its variants, then the peer."""
    group = f"{method.upper()} on {model.name}, {args.bits} bits, {rows} rows of 512" + "".join(f" {o}" for o in options)
    texts, ids = rows_of_ids(model, 516, rows)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        (folder / "rows.json").write_text(json.dumps([(row * 2)[:512] for row in ids]))
        seconds = {}
        for name, switches in variants.items():
            start = time.perf_counter()
            out = run([args.build / "lquant", method, "--model", model, "--mlx-path", folder / f"ours{name}", "--data-path", folder / "rows.jsonl", "--num-samples", rows,
                       "--bits", args.bits, "--embed-bits", 6, *switches, *options, "--json"])
            seconds[name] = time.perf_counter() - start
            figures = json.loads(out)
            table.add(group, f"lquant{name}", seconds[name], "s")
            for part, spent in figures["time"].items():
                table.add(group, f"lquant{name}: {part.replace('_', ' ')}", 100 * spent / figures["seconds"], "% of its time")
        theirs = json.loads(run([sys.executable, ROOT / "benchmarks" / f"peer_{method}.py", "--model", model, "--rows", folder / "rows.json", "--bits", args.bits,
                                 *options, "--output", folder / "theirs"]))
        table.add(group, "mlx_lm", theirs["seconds"], "s")
        for name in variants:
            table.add(group, f"ratio{name}", theirs["seconds"] / seconds[name], "times as fast")


def dynamic_round(table, args, model, rows):
    """Sensitivities on the same rows, from start to the written file. Ours are of all formats, the peer's of its two."""
    group = f"Sensitivities on {model.name}, {rows} rows of 512"
    texts, ids = rows_of_ids(model, 516, rows)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps({"tokens": (row * 2)[:512]}) + "\n" for row in ids))
        (folder / "rows.json").write_text(json.dumps([(row * 2)[:512] for row in ids]))
        seconds = {}
        for name, tokens in {"": [], " on every row": ["--sensitivity-tokens", 512 * rows]}.items():
            start = time.perf_counter()
            out = run([args.build / "lquant", "dynamic_quant", "--model", model, "--plan-only", folder / f"plan{name}.json", "--data-path", folder / "rows.jsonl",
                       *tokens, "--json"], cwd=folder)
            seconds[name] = time.perf_counter() - start
            table.add(group, f"lquant{name}", seconds[name], "s")
            table.add(group, f"lquant{name}: tokens", json.loads(out)["tokens"], "tokens")
        theirs = json.loads(run([sys.executable, ROOT / "benchmarks" / "peer_dynamic.py", "--model", model, "--rows", folder / "rows.json", "--output", folder / "theirs.json"]))
        table.add(group, "mlx_lm", theirs["seconds"], "s")
        for name in seconds:
            table.add(group, f"ratio{name}", theirs["seconds"] / seconds[name], "times as fast")


class Table:
    """Figures by name, one value a round."""

    def __init__(self):
        self.values = {}

    def add(self, group, name, value, unit):
        self.values.setdefault((group, name, unit), []).append(value)

    def rows(self):
        for (group, name, unit), values in self.values.items():
            yield {"group": group, "name": name, "unit": unit, "min": min(values), "median": statistics.median(values), "max": max(values), "rounds": len(values)}

    def markdown(self):
        lines, last = [], None
        for row in self.rows():
            if row["group"] != last:
                last = row["group"]
                lines += ["", f"**{last}**", "", "| | minimum | median | maximum | |", "| --- | ---: | ---: | ---: | --- |"]
            lines.append(f"| {row['name']} | {row['min']:.4g} | {row['median']:.4g} | {row['max']:.4g} | {row['unit']} |")
        return "\n".join(lines).strip()


def kernel_round(table, build, peaks):
    for program, filter in KERNELS.items():
        path = build / "benchmarks" / f"bench_{program}"
        if not path.exists():
            continue
        rows = microbenchmarks(path, filter or ".")
        times = {name: b["real_time"] for name, b in rows}
        for name, b in rows:
            base = re.sub(r"(Of)?Mlx(?=/|$)", "", name)
            if "GFLOP/s" in b:
                table.add("Kernels, share of the GEMM peak (bf16)", f"{program}: {name}", b["GFLOP/s"] * 1e9 / peaks["bf16"], "of peak")
            if base != name and base in times:
                table.add("Kernels, beside MLX's own op", f"{program}: {base}", times[name] / times[base], "times as fast")


def model_round(table, args, model, peaks):
    group = f"DWQ on {model.name}, {args.bits} bits"
    texts, _ = rows_of_ids(model, args.length, args.batch_size * (args.steps + 1))
    for codes in ("move", "fixed"):
        result = ours(args.build / "lquant", model, texts, args.length, args.batch_size, args.bits, codes)
        what = f"lquant, {args.batch_size} rows of {args.length}, codes {codes}"
        table.add(group, what, result["tokens_per_second"], "tokens/s")
        weights = weights_in_products(model)
        if weights:
            table.add(group, f"{what}: efficiency", 8 * weights * result["tokens_per_second"] / peaks["bf16"], "of the bf16 GEMM peak")
        table.add(group, f"{what}: memory", result["peak_memory"] / 1e9, "GB")
        if codes == "fixed":
            alike = result
    if args.peer_tokens > 0:
        texts, rows = rows_of_ids(model, args.peer_tokens + 1, args.peer_steps + 1)
        same = ours(args.build / "lquant", model, texts, args.peer_tokens + 1, 1, args.bits, "fixed")
        theirs = peer(model, rows, 1, args.bits)
        what = f"{args.peer_steps} steps of one row of {args.peer_tokens}"
        table.add(group, f"lquant, {what}, codes fixed", same["tokens_per_second"], "tokens/s")
        table.add(group, f"mlx_lm, {what}", theirs["tokens_per_second"], "tokens/s")
        table.add(group, "ratio on the same rows", same["tokens_per_second"] / theirs["tokens_per_second"], "times as fast")
        table.add(group, "ratio, lquant on its full rows", alike["tokens_per_second"] / theirs["tokens_per_second"], "times as fast")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="build folder")
    parser.add_argument("--model", type=Path, action="append", help="model folder; may be given again (default: models/tiny)")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=256, help="tokens in a row of ours")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step of ours")
    parser.add_argument("--steps", type=int, default=8, help="steps of ours")
    parser.add_argument("--peer-tokens", type=int, default=64, help="tokens in a row of the peer's; 0 leaves the peer out")
    parser.add_argument("--peer-steps", type=int, default=2, help="steps of the peer's")
    parser.add_argument("--gptq-rows", type=int, default=0, help="rows of 512 tokens for GPTQ beside mlx_lm's, which takes minutes even on models/tiny; 0 leaves it out")
    parser.add_argument("--awq-rows", type=int, default=0, help="the same for AWQ")
    parser.add_argument("--awq-grid", type=int, default=10, help="exponents that AWQ tries, of both")
    parser.add_argument("--dynamic-rows", type=int, default=0, help="the same for dynamic_quant's sensitivities")
    parser.add_argument("--no-dwq", action="store_true", help="leave DWQ out")
    parser.add_argument("--no-kernels", action="store_true", help="models alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()

    models = args.model or [ROOT / "models" / "tiny"]
    table = Table()
    for turn in range(args.rounds):
        print(f"bench: round {turn + 1} of {args.rounds}", file=sys.stderr)
        peaks = gemm_peaks(args.build)
        for dtype, peak in peaks.items():
            table.add("This machine", f"GEMM peak, {dtype}", peak / 1e9, "GFLOP/s")
        for model in models:
            if not args.no_dwq:
                model_round(table, args, model.resolve(), peaks)
            if args.gptq_rows > 0:
                # The correction is more than mlx_lm does; without it both have one task.
                method_round(table, args, model.resolve(), "gptq", args.gptq_rows, {"": [], " without correction": ["--asymmetric", "off"]})
            if args.awq_rows > 0:
                method_round(table, args, model.resolve(), "awq", args.awq_rows, {"": ["--embed-group-size", 64]}, ["--n-grid", args.awq_grid])
            if args.dynamic_rows > 0:
                dynamic_round(table, args, model.resolve(), args.dynamic_rows)
        if not args.no_kernels:
            kernel_round(table, args.build, peaks)
    print(table.markdown())
    if args.json:
        args.json.write_text(json.dumps({"cores": os.cpu_count(), "figures": list(table.rows())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
