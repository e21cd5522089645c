"""The rate of mlx_lm's DWQ on given rows, by its own functions. Prints JSON. Called by bench.py.

The time of a step is that between two requests for the teacher's answer: the teacher's pass, the student's, the update.
"""

import argparse
import contextlib
import copy
import json
import sys
import time

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.utils import load, quantize_model

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--rows", required=True, help="JSON file: lists of token ids, the first batch for validation")
parser.add_argument("--batch-size", type=int, required=True)
parser.add_argument("--bits", type=int, required=True)
args = parser.parse_args()

with contextlib.redirect_stdout(sys.stderr):  # mlx_lm prints notes; only the JSON belongs to the caller
    model, _, config = load(args.model, return_config=True)
    student = copy.deepcopy(model)
    student, _ = quantize_model(student, config, group_size=64, bits=args.bits)
    mx.eval(model.parameters(), student.parameters())
rows = [(row, 0) for row in json.load(open(args.rows))]
valid, train = rows[: args.batch_size], rows[args.batch_size :]
asked = []


def target(batch, index, split):
    asked.append((split, time.perf_counter()))
    return model(batch)


with contextlib.redirect_stdout(sys.stderr):
    longest = max(len(row) for row, _ in rows)
    dwq_quantize(student, target, optimizers.Adam(learning_rate=1e-6, bias_correction=True), train, valid, args.batch_size, longest, 0)

steps = [after[1] - before[1] for before, after in zip(asked, asked[1:]) if before[0] == "train"]
tokens = sum(len(row) - 1 for row, _ in train)
later = sum(len(row) - 1 for row, _ in train[2 * args.batch_size :]), sum(steps[2:])
print(json.dumps({"tokens_per_second": tokens / sum(steps), "later_tokens_per_second": later[0] / later[1] if later[1] else 0, "tokens": tokens, "seconds": sum(steps), "peak_memory": mx.get_peak_memory()}))
