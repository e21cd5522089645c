"""The time of mlx_lm's GPTQ on given rows, by its own function. Prints JSON. Called by bench.py."""

import argparse
import contextlib
import json
import sys
import time

import mlx.core as mx
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.utils import load, save

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True, help="JSON file: lists of token ids, all of one length")
parser.add_argument("--bits", type=int, required=True)
parser.add_argument("--output", required=True, help="where its model goes")
args = parser.parse_args()

start = time.perf_counter()
model, tokenizer, config = load(args.model, return_config=True)
rows = mx.array(json.load(open(args.rows)))
with contextlib.redirect_stdout(sys.stderr):
    model, config["quantization"] = gptq_quantize(model, rows, args.bits, 64, 6, 64)
    save(args.output, args.model, model, tokenizer, config)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory": mx.get_peak_memory()}))
