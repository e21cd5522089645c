"""Two ranks that talk by MLX's ring over loopback learn what one learns; the second neither writes nor prints."""

import json
import socket
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from support import ENVIRONMENT, LQUANT, dense_weights, encode, kl, random_model, run, sentences, text_rows
from test_resume import wait_for


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start_ranks(arguments, folders, tmp_path, **more):
    """One process a folder, each working in its own."""
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(len(folders))]))
    processes = []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        environment = dict(ENVIRONMENT, **more, MLX_RANK=str(rank), MLX_HOSTFILE=str(hosts), OMP_NUM_THREADS="1")
        command = [str(a) for a in (LQUANT, *arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder))
    return processes


def run_ranks(arguments, folders, tmp_path):
    """Their results in order of rank."""
    processes = start_ranks(arguments, folders, tmp_path)
    try:
        texts = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, complaint) in zip(processes, texts):
        assert process.returncode == 0, complaint
    return texts


@pytest.mark.parametrize("targets", ["live", "cached"])
def test_two_ranks_learn_what_one_learns(tmp_path, targets):
    # In f32: what differs is the order in which the ranks' gradients are added, a relative 2^-24 a sum.
    model = random_model(tmp_path / "model", dtype=mx.float32, torch_dtype="float32")
    rows = text_rows(tmp_path / "rows.jsonl", count=20)
    sizes = ["--bits", 3, "--num-samples", 16, "--num-valid", 4, "--batch-size", 4, "--json"]
    arguments = ["dwq", "--model", model, "--data-path", rows, "--mlx-path", "result", *sizes]
    if targets == "cached":
        run(*arguments, "--target-dir", tmp_path / "targets", "--targets-only", cwd=tmp_path)
        arguments += ["--target-dir", tmp_path / "targets"]
    (tmp_path / "one").mkdir()
    one = json.loads(run(*arguments, cwd=tmp_path / "one").stdout)
    (out, log), (silent_out, silent_log) = run_ranks(arguments, [tmp_path / "two", tmp_path / "second"], tmp_path)
    two = json.loads(out)
    assert silent_out == "" and silent_log == "" and list((tmp_path / "second").iterdir()) == []
    assert "saved to" in log and [p.name for p in (tmp_path / "two").iterdir()] == ["result"]

    assert (two["steps"], two["tokens"], two["bytes"]) == (one["steps"], one["tokens"], one["bytes"])
    # Before training nothing but the order of one sum of losses differs.
    assert two["validation_kl_start"] == pytest.approx(one["validation_kl_start"], rel=1e-5)
    # The optimizer divides each gradient by its own size, so a gradient near zero may turn its sign with the order of its sum, and
    # a code on the edge between two levels may fall either way; both are rare, and move the result far less than training does.
    gained = one["validation_kl_start"] - one["validation_kl"]
    assert gained > 0 and abs(two["validation_kl"] - one["validation_kl"]) < 0.05 * gained
    a, b, teacher = (dense_weights(folder) for folder in (tmp_path / "one" / "result", tmp_path / "two" / "result", model))
    for name in a:
        apart, error = np.linalg.norm(a[name] - b[name]), np.linalg.norm(a[name] - teacher[name])
        assert apart <= 0.1 * error, name
    ids = [ids[:20] for ids in encode(sentences(3, seed=77))]
    divergences = [kl(model, tmp_path / name / "result", ids) for name in ("one", "two")]
    assert divergences[1] == pytest.approx(divergences[0], rel=0.05)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_whose_fellow_died_says_so(tmp_path, victim):
    model = random_model(tmp_path / "model", hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = text_rows(tmp_path / "rows.jsonl", count=44, words=12)
    arguments = ["dwq", "--model", model, "--data-path", rows, "--num-samples", 40, "--num-valid", 4, "--batch-size", 2, "--bits", 3, "--mlx-path", "result"]
    folders = [tmp_path / "first", tmp_path / "second"]
    processes = start_ranks(arguments, folders, tmp_path, LQUANT_SAVE_SECONDS="0")
    assert wait_for(processes[0], folders[0] / "result.lquant-run" / "state.safetensors", fresh=False)
    processes[victim].kill()
    _, complaint = processes[1 - victim].communicate(timeout=100)
    assert processes[1 - victim].returncode == 1
    last = complaint.strip().split("\n")[-1]
    assert last.startswith("lquant: [pipeline] rank") and "give the same command again to continue" in last
    processes[victim].communicate()
