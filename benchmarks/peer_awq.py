"""The time of mlx_lm's AWQ on given rows, by its own functions. Prints JSON. Called by bench.py."""

import argparse
import contextlib
import json
import sys
import time

import mlx.core as mx
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize, update_config
from mlx_lm.utils import load, save

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True, help="JSON file: lists of token ids, all of one length")
parser.add_argument("--bits", type=int, required=True)
parser.add_argument("--n-grid", type=int, required=True)
parser.add_argument("--output", required=True, help="where its model goes")
args = parser.parse_args()

start = time.perf_counter()
model, tokenizer, config = load(args.model, return_config=True)
rows = mx.array(json.load(open(args.rows)))
with contextlib.redirect_stdout(sys.stderr):
    awq_quantize(model, rows, AWQ_MODEL_CONFIGS[config["model_type"]], bits=args.bits, group_size=64, embed_bits=6, embed_group_size=64, n_grid=args.n_grid)
    save(args.output, args.model, model, tokenizer, update_config(model, config))
print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory": mx.get_peak_memory()}))
