"""Runs of `lquant awq`: a method after it, and kills at many moments, alone and with one."""

import hashlib
import json
import shutil
import signal
import time

import mlx_lm
import numpy as np
import pytest
from support import kl, random_model, run, same_bytes, tensors, text_rows, tree
from test_awq import HELD_OUT, WIDTHS, awq, model, plain, plain_kl, rows, unbalanced  # noqa: F401 (fixtures)
from test_bad_input import out, refused  # noqa: F401
from test_resume import start, wait_for


def test_then_gptq(model, rows, plain_kl, tmp_path):
    done = run(*awq(model, rows, tmp_path / "result", *WIDTHS, "--n-grid", 3, "--then", "gptq", "--json"))
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert "correction" in json.loads(done.stdout)  # gptq's figures
    assert json.loads((tmp_path / "result" / "lquant.json").read_text())["command"] == "gptq"
    assert kl(model, tmp_path / "result", HELD_OUT) < 0.5 * plain_kl
    mlx_lm.load(str(tmp_path / "result"))
    # The same as the two commands one after the other.
    run(*awq(model, rows, tmp_path / "scaled", *WIDTHS, "--n-grid", 3))
    gptq = ["gptq", "--model", model, "--data-path", rows, "--bits", 3, "--sequence-length", 64, "--num-samples", 32]
    run(*gptq, "--scales", tmp_path / "scaled", "--mlx-path", tmp_path / "apart")
    record = json.loads((tmp_path / "apart" / "lquant.json").read_text())
    assert record["options"]["scales"] == hashlib.sha256((tmp_path / "scaled" / "scales.awq").read_bytes()).hexdigest()
    assert record == json.loads((tmp_path / "result" / "lquant.json").read_text())
    assert tensors(tmp_path / "result").keys() == tensors(tmp_path / "apart").keys()
    for name, tensor in tensors(tmp_path / "result").items():
        assert same_bytes(tensor, tensors(tmp_path / "apart")[name]), name


def test_then_dwq(model, rows, plain_kl, tmp_path):
    done = run(*awq(model, rows, tmp_path / "result", *WIDTHS, "--n-grid", 2, "--then", "dwq", "--then-samples", 16, "--json"))
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    figures = json.loads(done.stdout)
    assert figures["validation_kl"] <= figures["validation_kl_start"]
    record = json.loads((tmp_path / "result" / "lquant.json").read_text())
    assert record["command"] == "dwq" and record["data"]["rows"]["train"] == 16
    assert kl(model, tmp_path / "result", HELD_OUT) < 0.5 * plain_kl
    mlx_lm.load(str(tmp_path / "result"))


def test_output_named_as_a_folder(model, rows, tmp_path):
    """`--mlx-path result/`: what lies beside the output does not end up in it."""
    run(*awq(model, rows, f"{tmp_path / 'result'}/", *WIDTHS, "--num-samples", 8, "--n-grid", 2, "--then", "gptq"))
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    mlx_lm.load(str(tmp_path / "result"))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """command: its arguments but for --mlx-path, and the files of an undisturbed run; with blocks enough for kills to land among them."""
    folder = tmp_path_factory.mktemp("resume")
    model = unbalanced(folder / "model", num_hidden_layers=6, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = text_rows(folder / "rows.jsonl", count=44, words=12)
    alone = ["awq", "--model", model, "--data-path", rows, "--bits", 3, "--sequence-length", 32, "--n-grid", 2]
    found = {"alone": alone, "then-gptq": [*alone, "--then", "gptq"]}
    for name, arguments in found.items():
        run(*arguments, "--mlx-path", folder / name)
    return {name: (arguments, tree(folder / name)) for name, arguments in found.items()}


# The file of the output's parent whose appearance sets off a kill, and how many seconds later the kill comes at most.
MOMENTS = {
    "alone": [
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
    "then-gptq": [
        ("result.awq.lquant-run/journal.json", 0.05),
        ("result.awq.lquant-run/steps/awq.new.lquant-run/block-00001.safetensors", 0.02),
        ("result.awq.lquant-run/steps/awq.new.lquant-run/block-00004.safetensors.partial", 0.0),
        ("result.awq.lquant-run/steps/awq.new.lquant-run/final.safetensors", 0.0),
        ("result.awq.lquant-run/steps/.awq.new.partial", 0.0),
        ("result.awq.lquant-run/steps/awq.new", 0.0),
        ("result.awq.lquant-run/steps/awq", 0.0),
        ("result.lquant-run", 0.0),
        ("result.lquant-run/block-00000.safetensors", 0.02),
        ("result.lquant-run/block-00003.safetensors", 0.02),
        ("result.lquant-run/final.safetensors", 0.0),
        (".result.partial", 0.0),
    ],
}


@pytest.mark.parametrize("command", ["alone", "then-gptq"])
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
        if output.exists():  # it was faster than the kill, or killed between the last rename and the end: the next one meets a run of its own
            assert tree(output) == expected
            for path in tmp_path.iterdir():
                shutil.rmtree(path)
    assert killed >= 6  # else the machine is too slow for the moments above, and the test tells little
    run(*arguments, "--mlx-path", output)
    assert tree(output) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def killed_at(arguments, output, file):
    """Kills the command when `file` appears, which must be before it ends."""
    process = start(arguments, output)
    wait_for(process, file, fresh=True)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and file.exists()


def test_killed_between_two_methods(commands, tmp_path):
    """AWQ's result is whole: the next command takes it, and what lay beside the output goes when all is done."""
    arguments, expected = commands["then-gptq"]
    scaled = tmp_path / "result.awq.lquant-run" / "steps" / "awq"
    killed_at(arguments, tmp_path / "result", scaled)
    made = scaled.stat().st_mtime_ns
    process = start(arguments, tmp_path / "result")
    wait_for(process, tmp_path / "result.lquant-run" / "block-00000.safetensors", fresh=True)
    assert scaled.stat().st_mtime_ns == made  # not made again
    process.kill()
    process.communicate()
    done = run(*arguments, "--mlx-path", tmp_path / "result")
    assert f"continuing the run in {tmp_path / 'result.awq.lquant-run'}" in done.stderr
    assert tree(tmp_path / "result") == expected and [p.name for p in tmp_path.iterdir()] == ["result"]


def test_scales_of_another_run_beside_the_output(model, rows, out):
    quick = [*WIDTHS, "--num-samples", 8, "--n-grid", 2]
    killed_at(["awq", "--model", model, "--data-path", rows, *quick, "--then", "gptq"], out / "result", out / "result.awq.lquant-run" / "steps" / "awq")
    shutil.rmtree(out / "result.lquant-run", ignore_errors=True)
    named = [out / "result.awq.lquant-run", "a run that differs", "--fresh"]
    refused(out, awq(model, rows, out / "result", *quick, "--then", "gptq", "--seed", 5), *named)
    refused(out, awq(model, rows, out / "result", *quick, "--then", "gptq", "--inputs", "full"), *named)
    refused(out, awq(model, text_rows(out.parent / "rows.jsonl", seed=9), out / "result", *quick, "--then", "gptq"), *named)
    refused(out, awq(random_model(out.parent / "small", seed=3), rows, out / "result", *quick, "--then", "gptq"), *named)
    run(*awq(model, rows, out / "result", *quick, "--then", "gptq", "--fresh"))
    assert [p.name for p in out.iterdir()] == ["result"]
    other = out.parent / "other"
    run(*awq(model, rows, other, *quick, "--then", "gptq"))
    assert tree(out / "result") == tree(other)
