"""Two builds of lquant in turns, as ratios of their rates: whether a change has made a command slower.

Each round runs every command with both programs, one after the other, the first of them alternately; a figure is the rate of `after` divided by that
of `before`, so that below 1 is slower. Whole processes are timed.

    python benchmarks/before_after.py --before OLD/build/lquant [--after build/lquant] [--rounds 5]
"""

import argparse
import statistics
from pathlib import Path

from busy import COMMON, ROOT, seconds

SIZES = ["--bits", 3, "--sequence-length", 256, "--mlx-path", "out"]
COMMANDS = {
    "dwq": ["dwq", *COMMON, "--bits", 3, "--num-valid", 8, "--max-seq-length", 256, "--mlx-path", "out"],
    "gptq": ["gptq", *COMMON, *SIZES],
    "awq": ["awq", *COMMON, *SIZES],
    "dynamic_quant": ["dynamic_quant", *COMMON, "--target-bpw", 4.8, "--sequence-length", 256, "--mlx-path", "out"],
    "perplexity": ["perplexity", *COMMON, "--sequence-length", 256],
    "evaluate": ["evaluate", "--model", COMMON[1], "--tasks", "winogrande", "--limit", 60],
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", type=Path, required=True)
    arguments.add_argument("--after", type=Path, default=ROOT / "build" / "lquant")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--data-dir", type=Path, help="rows of the tasks that evaluate asks; without it evaluate is left out")
    options = arguments.parse_args()
    programs = {"before": options.before.resolve(), "after": options.after.resolve()}
    print(f"{'rate, after : before':16} minimum / median / maximum of {options.rounds} rounds")
    for name, command in COMMANDS.items():
        if name == "evaluate":
            if not options.data_dir:
                continue
            command = [*command, "--data-dir", options.data_dir.resolve()]
        ratios = []
        for turn in range(options.rounds):
            times = {which: seconds(programs[which], command) for which in (programs if turn % 2 == 0 else reversed(programs))}
            ratios.append(times["before"] / times["after"])
        print(f"{name:20} {min(ratios):5.3f} / {statistics.median(ratios):5.3f} / {max(ratios):5.3f}", flush=True)


if __name__ == "__main__":
    main()
