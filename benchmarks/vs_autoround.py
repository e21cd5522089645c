"""`lquant gptq --train-blocks` beside auto-round: seconds and KL divergence from the full-precision model, on the same rows, in the same run.

Linears alone are quantized, the embedding stays dense on both sides; group 64. Both results are judged by `lquant perplexity --teacher` on a text that
neither has seen; auto-round's is written dequantized for that. Plain rounding of the same linears gives the scale. Rounds are repeated; the table has minimum,
median and maximum. auto-round needs a Python environment of its own, named by --peer-python:

    python3 -m venv ar && ar/bin/pip install auto-round==0.16.1 torch transformers accelerate
    benchmarks/vs_autoround.py --model models/tiny --text train.txt --judge test.txt --peer-python ar/bin/python

Give it a quiet machine: the load is printed with the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 512


def run(command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def rows_of(text, tokenizer, count):
    """Texts that encode to LENGTH tokens or a few more, and their first LENGTH ids."""
    ids, texts, rows = tokenizer.encode(text, add_special_tokens=False).ids, [], []
    for start in range(0, len(ids), LENGTH + 32):
        piece = tokenizer.decode(ids[start : start + LENGTH + 32])
        row = tokenizer.encode(piece).ids
        if len(row) >= LENGTH and len(rows) < count:
            texts.append(piece)
            rows.append(row[:LENGTH])
    if len(rows) < count:
        raise SystemExit(f"--text has {len(rows)} rows of {LENGTH} tokens, {count} are wanted: give a longer one")
    return texts, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "tiny")
    parser.add_argument("--text", type=Path, required=True, help="calibration text")
    parser.add_argument("--judge", type=Path, required=True, help="text to measure KL on")
    parser.add_argument("--peer-python", required=True, help="python of an environment with auto-round 0.16.1")
    parser.add_argument("--lquant", type=Path, default=ROOT / "build" / "lquant")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--train-blocks", type=int, nargs="+", required=True, help="epochs of ours, each in a row of its own")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()

    texts, rows = rows_of(args.text.read_text(encoding="utf-8"), Tokenizer.from_file(str(args.model / "tokenizer.json")), args.rows)
    figures = {}
    print("load at the start:", os.getloadavg()[0], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        (folder / "rows.json").write_text(json.dumps(rows))
        (folder / "plan.json").write_text(json.dumps({"model.embed_tokens": False}))

        def add(bits, name, output, seconds):
            judged = json.loads(run([args.lquant, "perplexity", "--model", output, "--teacher", args.model, "--text", args.judge, "--json"]))
            figures.setdefault((bits, name), []).append((seconds, judged["kl"]))
            print(f"{bits} bits, {name}: {seconds:.1f} s, KL {judged['kl']:.4f}; load {os.getloadavg()[0]:.1f}", flush=True)

        for turn in range(args.rounds):
            for bits in args.bits:
                place = folder / f"{turn}-{bits}"
                run([args.lquant, "convert", "--hf-path", args.model, "-q", "--q-bits", bits, "--plan", folder / "plan.json", "--mlx-path", f"{place}-plain"])
                add(bits, "plain", f"{place}-plain", 0)
                for epochs in args.train_blocks:
                    start = time.perf_counter()
                    run([args.lquant, "gptq", "--model", args.model, "--bits", bits, "--data-path", folder / "rows.jsonl", "--plan", folder / "plan.json",
                         "--sequence-length", LENGTH, "--train-blocks", epochs, "--mlx-path", f"{place}-ours{epochs}"])
                    add(bits, f"lquant, {epochs} epochs", f"{place}-ours{epochs}", time.perf_counter() - start)
                theirs = json.loads(run([args.peer_python, ROOT / "benchmarks" / "peer_autoround.py", "--model", args.model, "--rows", folder / "rows.json",
                                         "--bits", bits, "--iters", args.iters, "--output", f"{place}-theirs"]).splitlines()[-1])
                add(bits, "auto-round", f"{place}-theirs", theirs["seconds"])

    def spread(values, digits):
        return " / ".join(f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))

    print("\n| bits | | seconds | KL | of plain's | times auto-round's speed | of auto-round's KL |\n| --- | --- | --- | --- | --- | --- | --- |")
    for (bits, name), found in figures.items():
        plain, peer = figures[bits, "plain"], figures[bits, "auto-round"]
        seconds, kl = zip(*found)
        faster = spread([p[0] / s for p, s in zip(peer, seconds)], 1) if seconds[0] else ""
        print(f"| {bits} | {name} | {spread(seconds, 1) if seconds[0] else ''} | {spread(kl, 4)} | {spread([k / p[1] for k, p in zip(kl, plain)], 3)} | {faster} | "
              f"{spread([k / p[1] for k, p in zip(kl, peer)], 3)} |")


if __name__ == "__main__":
    main()
