"""The last lines of a command that makes a model: where it is, how large and how good, and commands that work when they are pasted into a shell."""

import json
import os
import shlex
import subprocess

import pytest
from support import ENVIRONMENT, LQUANT, random_model, run, sentences, text_rows

SOME = ["--num-samples", 8, "--sequence-length", 16]
COMMANDS = {
    "convert": ["-q"],
    "dwq": ["--data-path", "rows.jsonl", "--bits", 3, "--num-samples", 16, "--num-valid", 4, "--batch-size", 4, "--max-seq-length", 16, "--json"],
    "gptq": ["--data-path", "rows.jsonl", *SOME, "--json"],
    "awq": ["--data-path", "rows.jsonl", *SOME, "--n-grid", 2, "--json"],
    "dynamic_quant": ["--data-path", "rows.jsonl", *SOME, "--target-bpw", 5, "--json"],
    "auto": ["--data-path", "rows.jsonl", *SOME, "--target-bpw", 4.6, "--steps", "gptq", "--json"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outcome")
    random_model(folder / "the original", vocab_size=8192)
    text_rows(folder / "rows.jsonl", count=32)
    (folder / "text.txt").write_text(" ".join(sentences(20)))
    return folder


def last_lines(done):
    lines = done.stderr.strip().split("\n")
    return lines[next(i for i, line in enumerate(lines) if line.startswith("saved to ")) :]


def size_words(count):
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.2f} kB"


def as_typed(line, folder):
    """A shell runs what stands behind the colon."""
    environment = dict(ENVIRONMENT, PATH=f"{os.path.dirname(LQUANT)}:{os.environ['PATH']}")
    done = subprocess.run(["sh", "-c", line.split(":", 1)[1]], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_last_lines(place, command):
    output = f"-{command}'s model" if command == "convert" else f"{command}'s model"
    path = "./" + output if command == "convert" else output
    done = run(command, "--model", "the original", f"--mlx-path={output}", *COMMANDS[command], cwd=place)
    record = json.loads((place / output / "lquant.json").read_text())
    first, *rest = last_lines(done)
    assert first == f"saved to {output}: {size_words(record['bytes'])}, {record['bits_per_weight']:.3f} bits per weight"
    figures = json.loads(done.stdout) if command != "convert" else {}  # nothing but JSON stands there
    expected = {
        "dwq": lambda: f"{figures['validation_kl']:.4f} nats/token",
        "awq": lambda: f"error of the blocks' outputs: {figures['output_error_ratio']:.2f} of plain rounding's",
        "dynamic_quant": lambda: f"{figures['kl']:.4f} nats/token",
        "auto": lambda: f"{min(s['kl'] for s in figures['steps']):.4f} nats/token",
    }
    if command in expected:
        quality = rest.pop(0)
        assert expected[command]() in quality, quality
        assert command == "awq" or quality.startswith("KL to the original on held-out rows: "), quality
    if command == "dwq":
        assert f"before training {figures['validation_kl_start']:.4f}" in quality, quality
    assert [line.split(":")[0] for line in rest] == ["try it", "measure it on a text", "publish it on the hub"]
    words = [shlex.split(line.split(":", 1)[1]) for line in rest]
    assert words[0][:4] == ["lquant", "generate", "--model", path]
    assert words[1] == ["lquant", "perplexity", "--model", path, "--teacher", "the original", "--data-path", "text.txt"]
    assert words[2][:4] == ["lquant", "upload", "--path", path]
    if command in ("convert", "auto"):
        assert as_typed(rest[0] + " --max-tokens 2", place)
        assert "KL " in as_typed(rest[1] + " --num-samples 2 --sequence-length 8", place)
        assert "library_name" in as_typed(rest[2] + " --dry-run", place)


def test_a_plan_says_what_it_is_for(place):
    more = ["--data-path", "rows.jsonl", *SOME, "--target-bpw", 5, "--plan-only", "the plan.json"]
    done = run("dynamic_quant", "--model", "the original", *more, cwd=place)
    saved, use = last_lines(done)
    assert saved == "saved to the plan.json"
    as_typed(use + " --data-path rows.jsonl --num-samples 4 --sequence-length 8 --mlx-path planned", place)
    assert (place / "planned" / "config.json").exists()


@pytest.mark.parametrize("batch,rate,reason,remedy", [(16, 10, "2 steps are too few", "--num-samples"), (1, 10, "the learning rate is probably too high", "--learning-rate")])
def test_training_that_brings_nothing_is_said(place, tmp_path, batch, rate, reason, remedy):
    sizes = ["--num-samples", 24, "--num-valid", 4, "--max-seq-length", 16, "--batch-size", batch, "--learning-rate", rate]
    done = run("dwq", "--model", "the original", "--data-path", "rows.jsonl", *sizes, "--mlx-path", tmp_path / "out", "--json", cwd=place)
    figures = json.loads(done.stdout)
    assert figures["validation_kl"] == figures["validation_kl_start"]
    (warning,) = [line for line in done.stderr.split("\n") if line.startswith("warning: Training did not lower the KL on the held-out rows")]
    assert reason in warning and remedy in warning, warning
    assert f"no lower than before training {figures['validation_kl_start']:.4f}" in last_lines(done)[1]
