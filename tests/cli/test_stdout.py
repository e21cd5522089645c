"""A result that cannot be written is an error, whichever command prints it: exit code 1, one sentence, and what was written to files stays."""

import json
import os
import subprocess

import pytest
from support import ENVIRONMENT, LQUANT, random_model, run, text_rows

SENTENCE = "lquant: standard output cannot be written ({}); what the command prints is lost, files that it has written are not: free space, or send its output elsewhere"
SMALL = ["--num-samples", 8, "--sequence-length", 32]

# Each command that prints, and whether its result is a folder of that name.
PRINTING = {
    "help": (["--help"], False),
    "version": (["--version"], False),
    "a command's help": (["dwq", "--help"], False),
    "help of a command": (["help", "gptq"], False),
    "dwq": (["dwq", "--model", "model", "--data-path", "rows.jsonl", "--bits", 3, "--num-samples", 4, "--num-valid", 2, "--batch-size", 2, "--json"], True),
    "gptq": (["gptq", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--json"], True),
    "awq": (["awq", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--n-grid", 2, "--json"], True),
    "awq and more": (["awq", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--n-grid", 2, "--then", "gptq", "--json"], True),
    "dynamic_quant": (["dynamic_quant", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--json"], True),
    "perplexities": (["dynamic_quant", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--report-ppl"], True),
    "auto": (["auto", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--steps", "gptq"], True),
    "auto in JSON": (["auto", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--steps", "gptq", "--json"], True),
    "auto, dry": (["auto", "--model", "model", "--data-path", "rows.jsonl", "--dry-run", "--json"], False),
    "perplexity": (["perplexity", "--model", "model", "--data-path", "rows.jsonl", *SMALL], False),
    "perplexity in JSON": (["perplexity", "--model", "model", "--data-path", "rows.jsonl", *SMALL, "--json"], False),
    "report": (["report", "packed", "--teacher", "model", "--data-path", "rows.jsonl", *SMALL, "--layers", "none"], False),
    "report in JSON": (["report", "packed", "--teacher", "model", "--data-path", "rows.jsonl", *SMALL, "--layers", "none", "--json"], False),
    "evaluate": (["evaluate", "--model", "model", "--tasks", "piqa", "--data-dir", "tasks"], False),
    "evaluate in JSON": (["evaluate", "--model", "model", "--tasks", "piqa", "--data-dir", "tasks", "--json"], False),
    "generate": (["generate", "--model", "model", "--prompt", "hi", "--max-tokens", 3], False),
    "families": (["families"], False),
    "upload": (["upload", "--path", "packed", "--upload-repo", "me/packed", "--dry-run"], False),
    "demo": (["demo", "--model", "model", "--bits", 2], False),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the commands read."""
    folder = tmp_path_factory.mktemp("place")
    random_model(folder / "model", num_hidden_layers=1, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1)
    text_rows(folder / "rows.jsonl", count=40)
    run("convert", "--model", folder / "model", "-q", "--mlx-path", folder / "packed")
    (folder / "tasks" / "piqa").mkdir(parents=True)
    rows = [dict(goal=f"warm room {i}", sol1="light a fire", sol2="open the window", label=i % 2) for i in range(4)]
    (folder / "tasks" / "piqa" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(place, tmp_path):
    for entry in place.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def call(arguments, folder, output, **options):
    return subprocess.run(
        [LQUANT, *map(str, arguments)], stdout=output, stderr=subprocess.PIPE, text=True, cwd=folder, env=ENVIRONMENT, timeout=300, **options
    )


def pipe_without_reader():
    read, write = os.pipe()
    os.close(read)
    return write


def refused(done, reason):
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith(SENTENCE.format(reason) + "\n"), done.stderr
    assert done.stderr.count("lquant: ") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("name", PRINTING)
def test_a_full_disk(here, name):
    arguments, makes_folder = PRINTING[name]
    with open("/dev/full", "w") as full:
        refused(call(arguments, here, full), "No space left on device")
    assert (here / "mlx_model" / "model.safetensors").exists() == makes_folder
    if makes_folder:  # whole: it opens
        call(["perplexity", "--model", "mlx_model", "--data-path", "rows.jsonl", "--num-samples", 1, "--sequence-length", 8], here, subprocess.DEVNULL, check=True)


QUICK = ["help", "version", "a command's help", "dwq", "perplexity in JSON", "report", "evaluate", "generate", "upload"]


@pytest.mark.parametrize("name", QUICK)
def test_a_closed_stdout(here, name):
    arguments, makes_folder = PRINTING[name]
    before = {p.name for p in here.iterdir()}
    refused(call(arguments, here, None, preexec_fn=lambda: os.close(1)), "it is closed")
    # The number that stdout left behind went to no file that the command writes.
    for file in here.rglob("*"):
        if file.is_file() and file.suffix in (".safetensors", ".json", ".html"):
            assert b"perplexity  " not in file.read_bytes(), file
    if not makes_folder and name not in ("report", "evaluate"):
        assert {p.name for p in here.iterdir()} == before


@pytest.mark.parametrize("name", QUICK)
def test_a_reader_that_is_gone(here, name):
    write = pipe_without_reader()
    try:
        refused(call(PRINTING[name][0], here, write), "Broken pipe")
    finally:
        os.close(write)


def test_what_prints_nothing_needs_no_stdout(here):
    done = call(["convert", "--model", "model", "-q", "--mlx-path", "out"], here, None, preexec_fn=lambda: [os.close(n) for n in (0, 1)])
    assert done.returncode == 0, done.stderr
    run("perplexity", "--model", here / "out", "--data-path", here / "rows.jsonl", "--num-samples", 1, "--sequence-length", 8)


def test_a_closed_stderr_says_nothing_anywhere(here):
    """With neither stdout nor stderr the numbers 1 and 2 are free for files: none of them gets a word."""
    close = lambda: [os.close(n) for n in (0, 1, 2)]
    done = subprocess.run([LQUANT, "convert", "--model", "model", "-q", "--mlx-path", "bare"], cwd=here, env=ENVIRONMENT, preexec_fn=close, timeout=300)
    assert done.returncode == 0
    run("convert", "--model", here / "model", "-q", "--mlx-path", here / "usual")
    for name in ("model.safetensors", "config.json", "lquant.json"):
        assert (here / "bare" / name).read_bytes() == (here / "usual" / name).read_bytes()
