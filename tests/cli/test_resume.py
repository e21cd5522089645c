"""A run that is killed or interrupted at any moment and given again ends in the very bytes of a run left alone."""

import signal
import subprocess
import time

import numpy as np
import pytest
from support import ENVIRONMENT, LQUANT, random_model, run, text_rows, tree

# State after every step, so that kills land before, between and after savings.
OFTEN = {"LQUANT_SAVE_SECONDS": "0"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """command: its arguments but for --mlx-path, and the files of an undisturbed run. The model has blocks enough for kills to
    land among them."""
    folder = tmp_path_factory.mktemp("resume")
    model = random_model(folder / "model", num_hidden_layers=6, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = text_rows(folder / "rows.jsonl", count=44, words=12)
    sizes = ["--num-samples", 40, "--num-valid", 4, "--batch-size", 2, "--bits", 3]
    found = {
        "dwq": ["dwq", "--model", model, "--data-path", rows, *sizes],
        "gptq": ["gptq", "--model", model, "--data-path", rows, "--bits", 3, "--sequence-length", 32],
        "gptq, trained": ["gptq", "--model", model, "--data-path", rows, "--bits", 2, "--sequence-length", 32, "--train-blocks", 2],
        "convert": ["convert", "--hf-path", model, "-q", "--q-group-size", 32],
    }
    for name, arguments in found.items():
        run(*arguments, "--mlx-path", folder / name)
    return {name: (arguments, tree(folder / name)) for name, arguments in found.items()}


def start(arguments, output):
    command = [str(a) for a in (LQUANT, *arguments, "--mlx-path", output)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(ENVIRONMENT, **OFTEN))


def wait_for(process, file, fresh):
    """Until `file` is there (written by this process, if `fresh`) or the process has ended; False when it ended first."""
    stamp = lambda: file.stat().st_mtime_ns if file.exists() else None
    before = stamp() if fresh else None
    while process.poll() is None:
        try:
            if stamp() != before:
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    return False


# The file of the output's parent whose appearance sets off a kill, and how many seconds later the kill comes at most.
MOMENTS = {
    "dwq": [
        ("result.lquant-run/journal.json", 0.05),
        ("result.lquant-run/start-00000.safetensors", 0.02),
        ("result.lquant-run/start-00004.safetensors", 0.02),
        ("result.lquant-run/best.safetensors", 0.05),
        ("result.lquant-run/state.safetensors", 0.05),
        ("result.lquant-run/state.safetensors", 0.1),
        ("result.lquant-run/state.safetensors.partial", 0.0),
        ("result.lquant-run/state.safetensors", 0.2),
        (".result.partial", 0.0),
        (".result.partial", 0.03),
    ],
    "gptq": [
        ("result.lquant-run/journal.json", 0.05),
        ("result.lquant-run/block-00000.safetensors.partial", 0.0),
        ("result.lquant-run/block-00000.safetensors", 0.0),
        ("result.lquant-run/block-00001.safetensors", 0.02),
        ("result.lquant-run/block-00002.safetensors", 0.05),
        ("result.lquant-run/block-00003.safetensors", 0.1),
        ("result.lquant-run/block-00004.safetensors", 0.02),
        ("result.lquant-run/block-00005.safetensors", 0.0),
        ("result.lquant-run/final.safetensors", 0.01),
        (".result.partial", 0.0),
    ],
    "gptq, trained": [
        ("result.lquant-run/journal.json", 0.05),
        ("result.lquant-run/sensitivity-00004.safetensors", 0.0),
        ("result.lquant-run/sensitivity-00000.safetensors", 0.02),
        ("result.lquant-run/block-00000.safetensors.partial", 0.0),
        ("result.lquant-run/block-00001.safetensors", 0.1),
        ("result.lquant-run/block-00002.safetensors", 0.2),
        ("result.lquant-run/block-00004.safetensors", 0.05),
        ("result.lquant-run/final.safetensors", 0.0),
        (".result.partial", 0.0),
    ],
    "convert": [
        ("result.lquant-run", 0.0),
        ("result.lquant-run/journal.json", 0.01),
        ("result.lquant-run/embedding.safetensors.partial", 0.0),
        ("result.lquant-run/embedding.safetensors", 0.002),
        ("result.lquant-run/block-00001.safetensors", 0.002),
        ("result.lquant-run/block-00003.safetensors", 0.002),
        ("result.lquant-run/block-00005.safetensors", 0.0),
        ("result.lquant-run/final.safetensors", 0.002),
        (".result.partial", 0.0),
        (".result.partial", 0.005),
    ],
}


@pytest.mark.parametrize("command", ["dwq", "gptq", "gptq, trained", "convert"])
def test_kills(commands, tmp_path, command):
    arguments, expected = commands[command]
    rng = np.random.default_rng(20)
    output, killed = tmp_path / "result", 0
    for file, delay in MOMENTS[command]:
        process = start(arguments, output)
        if wait_for(process, tmp_path / file, fresh=True):
            time.sleep(delay * rng.random())
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 0:  # it was faster than the kill: the next one meets a run of its own
            assert tree(output) == expected
            output.rename(tmp_path / f"whole-{killed}-{file.replace('/', '-')}")
        else:
            assert not output.exists() or tree(output) == expected
            if output.exists():  # killed between the last rename and the end
                output.rename(tmp_path / f"whole-{killed}-{file.replace('/', '-')}")
    assert killed >= 6  # else the machine is too slow for the moments above, and the test tells little
    if not output.exists():
        run(*arguments, "--mlx-path", output)
    assert tree(output) == expected
    assert not (tmp_path / ".result.partial").exists() and not (tmp_path / "result.lquant-run").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption(commands, tmp_path, sent):
    arguments, expected = commands["dwq"]
    process = start(arguments, tmp_path / "result")
    assert wait_for(process, tmp_path / "result.lquant-run" / "state.safetensors", fresh=False)
    process.send_signal(sent)
    _, complaint = process.communicate()
    last = complaint.strip().split("\n")[-1]
    assert process.returncode == 130
    assert last.startswith("lquant: ") and "interrupted" in last and "give the same command again to continue" in last
    assert [p.name for p in tmp_path.iterdir()] == ["result.lquant-run"]
    done = run(*arguments, "--mlx-path", tmp_path / "result")
    assert "continuing the run in" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["result"] and tree(tmp_path / "result") == expected


def test_two_runs_at_once(commands, tmp_path):
    """The second is told so, and the first does not notice."""
    arguments, expected = commands["dwq"]
    process = start(arguments, tmp_path / "result")
    assert wait_for(process, tmp_path / "result.lquant-run" / "start-00000.safetensors", fresh=False)
    second = run(*arguments, "--mlx-path", tmp_path / "result", code=1)
    assert "another run is working there" in second.stderr
    process.communicate()
    assert process.returncode == 0 and tree(tmp_path / "result") == expected
