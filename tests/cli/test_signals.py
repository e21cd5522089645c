"""What the program does when it is asked to end, when a file may grow no further and when there is no room for threads."""

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ENVIRONMENT, LQUANT, TINY, random_model, run, text_rows, tree
from test_resume import OFTEN, wait_for

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def dwq(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    model = random_model(folder / "model", hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = text_rows(folder / "rows.jsonl", count=44, words=12)
    call = ["dwq", "--model", model, "--data-path", rows, "--num-samples", 40, "--num-valid", 4, "--batch-size", 2, "--bits", 3]
    run(*call, "--mlx-path", folder / "undisturbed")
    return call, tree(folder / "undisturbed")


def training(call, output, **options):
    """The command, once it has saved its state."""
    process = subprocess.Popen(
        [str(a) for a in (LQUANT, *call, "--mlx-path", output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(ENVIRONMENT, **OFTEN), **options
    )
    assert wait_for(process, Path(f"{output}.lquant-run") / "state.safetensors", fresh=False)
    return process


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_saves(dwq, tmp_path, sent):
    call, expected = dwq
    process = training(call, tmp_path / "result")
    process.send_signal(sent)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "give the same command again to continue" in said.strip().split("\n")[-1]
    run(*call, "--mlx-path", tmp_path / "result")
    assert tree(tmp_path / "result") == expected


def test_a_second_signal_ends_at_once(dwq, tmp_path):
    process = training(dwq[0], tmp_path / "result")
    # Both are pending before the program takes the first.
    process.send_signal(signal.SIGSTOP)
    for sent in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(sent)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM)


def test_what_cannot_be_saved_ends_at_once():
    """`generate` keeps nothing: the first signal is the end, by that signal."""
    process = subprocess.Popen([LQUANT, "generate", "--model", str(TINY), "--prompt", "-"], stdin=subprocess.PIPE, env=ENVIRONMENT)
    time.sleep(0.5)  # it waits for its prompt
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT


def test_nohup_is_heeded(dwq, tmp_path):
    """Started to outlive its terminal, it does."""
    call, expected = dwq
    process = training(call, tmp_path / "result", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0 and tree(tmp_path / "result") == expected


@linux
def test_no_thread_that_computes_takes_a_signal(dwq, tmp_path):
    """Every thread blocks the signals that end the program: a handler may run on none of them (the header of cli/signals.h says why)."""
    process = training(dwq[0], tmp_path / "result")
    process.send_signal(signal.SIGSTOP)
    ending = sum(1 << (s - 1) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    fields = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        # The thread that takes the signals waits for them in sigwait, where the kernel shows them as not blocked.
        fields.append((int(status["SigBlk"], 16) & ending == ending, int(status["SigCgt"], 16) & ending))
    process.kill()
    process.communicate()
    assert len(fields) > 2
    assert sum(not blocked for blocked, _ in fields) <= 1
    assert all(caught == 0 for _, caught in fields), "a handler is installed"


def test_a_file_that_may_not_grow_is_an_error(tmp_path):
    """RLIMIT_FSIZE sends SIGXFSZ, which would end the program without a word."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = run("convert", "--model", TINY, "-q", "--mlx-path", tmp_path / "result", code=1, preexec_fn=limit)
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("lquant: ") and "cannot be written" in last
    assert not (tmp_path / "result").exists()


@linux
@pytest.mark.parametrize("kilobytes", [120_000, 200_000, 300_000, 500_000])
def test_too_little_memory_is_said(tmp_path, kilobytes):
    """With too little room for threads the program ends, by a sentence or with its work done; it does not wait for ever."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (kilobytes * 1024, kilobytes * 1024))  # noqa: E731
    command = [LQUANT, "convert", "--model", str(TINY), "-q", "--mlx-path", str(tmp_path / "result")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limit, timeout=60)
    # 127: the loader could not map the shared libraries; it says so itself.
    assert done.returncode in (0, 1, 127), (done.returncode, done.stderr)
    assert done.returncode == 0 or done.stderr.strip()
    assert (tmp_path / "result").exists() == (done.returncode == 0)
