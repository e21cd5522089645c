"""The time of mlx_lm's sensitivities on given rows, by its own function, and its file. Prints JSON. Called by bench.py."""

import argparse
import contextlib
import json
import sys
import time

import mlx.core as mx
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from mlx_lm.utils import load

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True, help="JSON file: lists of token ids, all of one length")
parser.add_argument("--output", required=True, help="where its sensitivities go")
args = parser.parse_args()

start = time.perf_counter()
model, tokenizer = load(args.model)
rows = mx.array(json.load(open(args.rows)))
with contextlib.redirect_stdout(sys.stderr):
    sensitivities = estimate_sensitivities(model, rows, 4, 64, 5, 64)
with open(args.output, "w") as file:
    json.dump(sensitivities, file)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory": mx.get_peak_memory()}))
