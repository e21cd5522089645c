"""The time of auto-round on given rows, by its own class, and its result as a dense folder. Prints JSON. Called by vs_autoround.py, in a Python environment
of auto-round's own: `python3 -m venv ar && ar/bin/pip install auto-round==0.16.1 torch transformers accelerate`."""

import argparse
import contextlib
import json
import sys
import time

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True, help="JSON file: lists of token ids, all of one length")
parser.add_argument("--bits", type=int, required=True)
parser.add_argument("--group-size", type=int, default=64)
parser.add_argument("--iters", type=int, default=200)
parser.add_argument("--output", required=True, help="where its model goes: weights as they are dequantized")
args = parser.parse_args()

rows = torch.tensor(json.load(open(args.rows)))
with contextlib.redirect_stdout(sys.stderr):
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    loader = torch.utils.data.DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows], batch_size=8)
    rounding = AutoRound(model, AutoTokenizer.from_pretrained(args.model), bits=args.bits, group_size=args.group_size, sym=False, dataset=loader,
                         iters=args.iters, nsamples=len(rows), seqlen=rows.shape[1], device_map="cpu", enable_torch_compile=False)
    rounding.quantize()
    seconds = time.perf_counter() - start
    rounding.save_quantized(args.output, format="fake")
print(json.dumps({"seconds": seconds}))
