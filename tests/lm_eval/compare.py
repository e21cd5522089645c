#!/usr/bin/env python3
"""Does `lquant evaluate` say what lm-eval says, and how much sooner?

Both get the same rows from local files and the same weights. Per-row log-likelihoods must agree to --tolerance, accuracies (acc, acc_norm) and
their standard errors exactly; then rows per second are compared: lm-eval's are those of its loglikelihood requests alone, lquant's those of the
whole command, model loading included, once before and once after (on a machine that others use, the two tell how far to trust the ratio).

usage: compare.py --model FOLDER --data FOLDER [--limit 200] [--shots N] [--tasks …] [--backend hf|mlx] [--chat] [--multiturn] [--lquant FILE]

  hf    lm-eval's own wrapper of transformers, torch on the CPU
  mlx   mlx_lm's wrapper (mlx_lm.evaluate); slow on a CPU, so choose few rows

The model should be float32 (`lquant convert --model M --dtype float32`), so that both sides round alike; DATA holds TASK/SPLIT.jsonl as
docs/evaluate.md says. With --shots the rows behind the first --limit serve as the train split. Nothing is downloaded.

needs: pip install lm-eval==0.4.13 torch transformers, and mlx-lm for the other backend. Run by hand; pytest does not collect it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TASKS = "winogrande boolq arc_challenge arc_easy hellaswag openbookqa piqa social_iqa".split()
SCORED = {"arc_challenge": "test", "arc_easy": "test", "openbookqa": "test"}


def hub_row(task, row):
    """The row with the columns of the hub's data set, which lm-eval's definitions ask for."""
    row = dict(row)
    if "answer_index" in row:
        texts = row["choices"]
        labels = [chr(ord("A") + i) for i in range(len(texts))]
        row["choices"], row["answerKey"] = {"text": texts, "label": labels}, labels[row.pop("answer_index")]
    if task == "openbookqa" and "question_stem" not in row:
        row["question_stem"] = row.pop("question")
    if task == "hellaswag" and "ctx_a" not in row:
        row["ctx_a"], row["ctx_b"] = row["ctx_lm_eval"], ""  # what is joined is stripped
    return row


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def lay_out(data, folder, tasks, limit, shots):
    """The rows that both sides read."""
    for task in tasks:
        split = SCORED.get(task, "validation")
        rows = read(data / task / f"{split}.jsonl")
        (folder / task).mkdir()
        parts = {split: rows[:limit]}
        if shots:
            parts["train"] = rows[limit : limit + 500]
        for name, part in parts.items():
            (folder / task / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def lm_eval_side(args, folder):
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask

    datasets.disable_progress_bars()

    def download(self, *_, **__):
        own = folder / self.config.task
        parts = {f.stem: [hub_row(self.config.task, row) for row in read(f)] for f in own.glob("*.jsonl")}
        scored = parts[SCORED.get(self.config.task, "validation")]
        self.dataset = {split: datasets.Dataset.from_list(parts.get(split, scored[:1])) for split in ("train", "validation", "test")}

    ConfigurableTask.download = download
    if args.backend == "hf":
        from lm_eval.models.huggingface import HFLM

        model = HFLM(pretrained=str(args.model), dtype=args.dtype, device="cpu", batch_size=args.batch_size)
    else:
        from mlx_lm.evaluate import MLXLM

        model = MLXLM(str(args.model), batch_size=args.batch_size, use_chat_template=args.chat)
    asked, seconds = model.loglikelihood, []

    def timed(requests, *more, **named):
        start = time.perf_counter()
        answers = asked(requests, *more, **named)
        seconds.append(time.perf_counter() - start)
        return answers

    model.loglikelihood = timed
    seeds = {name: args.seed for name in ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")}
    chat = dict(apply_chat_template=args.chat, fewshot_as_multiturn=args.multiturn)
    found = lm_eval.simple_evaluate(model, tasks=args.tasks, num_fewshot=args.shots, **chat, **seeds)
    rows = {}
    for task in args.tasks:
        samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
        rows[task] = [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
    return found["results"], rows, sum(seconds)


def equal(ours, theirs):
    """Numbers may differ in the last bits: Python sums in another order from release to release."""
    return ours == theirs or (isinstance(ours, float) and isinstance(theirs, float) and abs(ours - theirs) < 1e-12)


def lquant_side(args, folder, output):
    command = [
        args.lquant,
        "evaluate",
        "--model",
        args.model,
        "--tasks",
        *args.tasks,
        "--data-dir",
        folder,
        "--output-dir",
        output,
    ]
    command += [
        "--num-shots",
        args.shots or 0,
        "--seed",
        args.seed,
        "--apply-chat-template" if args.chat else "--no-apply-chat-template",
    ]
    command += ["--fewshot-as-multiturn"] * args.multiturn
    start = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    rows = {task: [] for task in args.tasks}
    for line in read(next(output.glob("*.rows.jsonl"))):
        rows[line["task"]].append(line["loglikelihoods"])
    results = next(f for f in output.iterdir() if f.suffix not in (".json", ".jsonl"))
    return json.loads(results.read_text()), rows, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lquant", type=Path, default=Path("build/lquant"))
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--shots", type=int)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--backend", choices=["hf", "mlx"], default="hf")
    parser.add_argument("--dtype", default="float32", help="of transformers' computation; the models' own says what a user gets, and rounds more")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--multiturn", action="store_true")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    args = parser.parse_args()
    load = lambda when: print(f"load average at the {when}:", " ".join(f"{x:.2f}" for x in os.getloadavg()), flush=True)
    load("start")
    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "rows", Path(place) / "results"
        folder.mkdir()
        lay_out(args.data, folder, args.tasks, args.limit, args.shots)
        ours, our_rows, our_seconds = lquant_side(args, folder, output)
        theirs, their_rows, their_seconds = lm_eval_side(args, folder)
        again, _, again_seconds = lquant_side(args, folder, Path(place) / "again")
        assert again == ours
    load("end")
    agree, count = True, 0
    print(f"{'task':<15}{'rows':>6}{'largest difference':>20}{'beyond':>8}  metrics")
    for task in args.tasks:
        count += len(our_rows[task])
        gaps = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x, y in zip(our_rows[task], their_rows[task], strict=True)]
        beyond = sum(gap > args.tolerance for gap in gaps)
        differ = [k for k in theirs[task] if not equal(ours[task].get(k), theirs[task][k])]
        agree &= beyond == 0 and not differ and list(ours[task]) == list(theirs[task])
        said = "DIFFER: " + ", ".join(f"{k} {ours[task].get(k)} / {theirs[task][k]}" for k in differ) if differ else "equal"
        print(f"{task:<15}{len(gaps):>6}{max(gaps):>20.2e}{beyond:>8}  {said}")
    name = {"hf": "lm-eval, transformers", "mlx": "lm-eval, mlx_lm"}[args.backend]
    rates = f"{count / our_seconds:.2f} before and {count / again_seconds:.2f} after"
    ratios = f"{their_seconds / our_seconds:.2f} and {their_seconds / again_seconds:.2f}"
    print(f"rows/s: lquant {rates}, {name} {count / their_seconds:.2f}; ratios {ratios}")
    sys.exit(not agree)


if __name__ == "__main__":
    main()
