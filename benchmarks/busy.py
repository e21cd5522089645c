"""What waiting threads cost: lquant alone on the machine and beside one busy core, as ratios of times.

OpenMP's threads wait for each other by turning in a loop. Too many turns cost dearly where another program has a core, too few cost something where
none has. `quiet` is lquant's own number of turns (src/cli/waiting.cpp) by the runtime's default, both alone; `busy` is lquant beside a program that
keeps one core busy by lquant alone, and `busy, default` the same with the runtime's default.

    python benchmarks/busy.py [--lquant build/lquant] [--rounds 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_TURNS = "300000"  # of libgomp, when nothing is set
COMMON = ["--model", ROOT / "models" / "tiny", "--data-path", "text.txt", "--num-samples", 64]
COMMANDS = {
    "dwq": ["dwq", *COMMON, "--bits", 3, "--num-valid", 8, "--max-seq-length", 256, "--mlx-path", "out"],
    "gptq": ["gptq", *COMMON, "--bits", 3, "--sequence-length", 256, "--mlx-path", "out"],
    "perplexity": ["perplexity", *COMMON, "--sequence-length", 256],
}


def seconds(lquant, command, turns=None):
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if turns:
        environment["GOMP_SPINCOUNT"] = turns
    with tempfile.TemporaryDirectory() as folder:
        pages = sorted((ROOT / "docs").rglob("*.md"))
        (Path(folder) / "text.txt").write_text("\n\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="utf-8")
        words = [str(word) for word in (lquant, *command)]
        start = time.monotonic()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)}:\n{done.stderr[-2000:]}")
        return time.monotonic() - start


def busy(measure):
    """measure() while another program keeps one core busy."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        return measure()
    finally:
        neighbour.kill()
        neighbour.wait()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--lquant", type=Path, default=ROOT / "build" / "lquant")
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    lquant = options.lquant.resolve()
    print(f"{'':12} {'minimum / median / maximum of':>32} {options.rounds} rounds")
    for name, command in COMMANDS.items():
        ratios = {"quiet": [], "busy": [], "busy, default": []}
        for _ in range(options.rounds):
            usual, ours = seconds(lquant, command, DEFAULT_TURNS), seconds(lquant, command)
            ratios["quiet"].append(ours / usual)
            ratios["busy"].append(busy(lambda: seconds(lquant, command)) / ours)
            ratios["busy, default"].append(busy(lambda: seconds(lquant, command, DEFAULT_TURNS)) / usual)
        for what, values in ratios.items():
            print(f"{name:12} {what:14} {min(values):6.2f} / {statistics.median(values):5.2f} / {max(values):5.2f}", flush=True)


if __name__ == "__main__":
    main()
