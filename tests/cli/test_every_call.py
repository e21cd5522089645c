"""A run killed at any system call that writes, renames or removes in its run folder, and any byte changed there afterwards: what comes next ends
in the very bytes of a run left alone, or says why it does not go on.

`make test` takes a sample of the calls and bytes, another one each time that the code changes the calls; LQUANT_EVERY_CALL=1 takes all of them."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import ENVIRONMENT, LQUANT, random_model, text_rows, tree

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="calls are taken over by LD_PRELOAD")
ALL = os.environ.get("LQUANT_EVERY_CALL") == "1"
SAMPLE = 5  # calls of each command
OFTEN = dict(ENVIRONMENT, LQUANT_SAVE_SECONDS="0", OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def injector(tmp_path_factory):
    library = tmp_path_factory.mktemp("inject") / "inject.so"
    source = Path(__file__).parents[1] / "faults" / "inject.cpp"
    subprocess.run([os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """command: what it is called with, and with another seed (or width); the files of either when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("calls")
    model = random_model(folder / "model", num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = text_rows(folder / "rows.jsonl", count=12, words=8)
    common = ["--model", model, "--data-path", rows]
    few = [*common, "--num-samples", 8, "--sequence-length", 16]
    found = {
        "convert": (["convert", "--model", model, "-q", "--q-bits"], 3, 4),
        "gptq": (["gptq", *few, "--bits", 3, "--seed"], 1, 2),
        "gptq, trained": (["gptq", *few, "--bits", 2, "--train-blocks", 1, "--seed"], 1, 2),
        "awq, then gptq": (["awq", *few, "--bits", 3, "--n-grid", 2, "--then", "gptq", "--seed"], 1, 2),
        "dwq": (["dwq", *common, "--bits", 3, "--num-samples", 8, "--num-valid", 2, "--batch-size", 2, "--max-seq-length", 16, "--seed"], 1, 2),
        "dynamic_quant": (["dynamic_quant", *few, "--seed"], 1, 2),
        "auto": (["auto", *few, "--target-bpw", 3.5, "--steps", "gptq", "dwq", "--seed"], 1, 2),
    }
    made = {}
    for name, (arguments, one, other) in found.items():
        both = []
        for value in (one, other):
            call = [str(a) for a in (LQUANT, *arguments, value)]
            output = folder / name.replace(" ", "-") / str(value) / "result"
            output.parent.mkdir(parents=True)
            done = subprocess.run([*call, "--mlx-path", output], cwd=output.parent, env=OFTEN, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            both.append((call, tree(output)))
        made[name] = both
    return made


# What the command may say instead of ending well: the folder is whole already, the run is another's, or the file of sensitivities that the killed run
# had written beside it is damaged.
REFUSALS = ("exists", "left by a run that differs", "does not hold sensitivities of this model")


def again(call, folder, expected):
    """The command once more: the right bytes, or a refusal that leaves everything as it was. Returns what it said."""
    before = tree(folder)
    done = subprocess.run([*call, "--mlx-path", "result"], cwd=folder, env=OFTEN, capture_output=True, text=True)
    if done.returncode == 0:
        assert tree(folder / "result") == expected, done.stderr
        left = {p.name for p in folder.iterdir() if not p.name.endswith("sensitivities.json") and not p.name.endswith("sensitivities.lquant.json")}
        assert left == {"result"}, left
    else:
        assert done.returncode == 1, done.stderr
        said = done.stderr.strip().split("\n")[-1]
        assert any(words in said for words in REFUSALS), done.stderr
        # What was half removed already may go; nothing else changes.
        unlike = {k for k, v in before.items() ^ tree(folder).items() if ".lquant-run.removed/" not in k}
        assert not unlike, unlike
    return done


def killed_at(injector, call, folder, at):
    """Exit code of the command when its `at`-th call in the run folder is its last."""
    environment = dict(OFTEN, LD_PRELOAD=str(injector), INJECT_UNDER=".lquant-run", INJECT_AT=str(at))
    return subprocess.run([*call, "--mlx-path", "result"], cwd=folder, env=environment, capture_output=True, text=True).returncode


COMMANDS = ["convert", "gptq", "gptq, trained", "awq, then gptq", "dwq", "dynamic_quant", "auto"]


@pytest.fixture(scope="module")
def counts(injector, commands, tmp_path_factory):
    """command: how many calls it makes when nothing disturbs it."""
    found = {}
    for command, ((call, expected), _) in commands.items():
        folder = tmp_path_factory.mktemp("count")
        environment = dict(OFTEN, LD_PRELOAD=str(injector), INJECT_UNDER=".lquant-run", INJECT_COUNT=str(folder / "count"))
        subprocess.run([*call, "--mlx-path", "result"], cwd=folder, env=environment, capture_output=True, check=True)
        assert tree(folder / "result") == expected
        found[command] = int((folder / "count").read_text())
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_kill_at_every_call(injector, commands, counts, tmp_path, command):
    (call, expected), (other_call, other) = commands[command]
    count = counts[command]
    assert count >= 10, "the calls are not seen"
    chosen = range(1, count + 1)
    if not ALL:
        chosen = sorted(random.Random(f"{command} {count}").sample(chosen, SAMPLE))
    for at in chosen:
        folder = tmp_path / f"at-{at}"
        folder.mkdir()
        assert killed_at(injector, call, folder, at) == -signal.SIGKILL
        shutil.copytree(folder, tmp_path / f"other-{at}", symlinks=True)
        done = again(call, folder, expected)
        assert tree(folder / "result") == expected, f"killed at call {at} of {count}: {done.stderr}"
        if (tmp_path / f"other-{at}" / "result").exists():  # whole already, and refused for that
            assert tree(tmp_path / f"other-{at}" / "result") == expected
        else:
            again(other_call, tmp_path / f"other-{at}", other)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"other-{at}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_byte_changed_in_any_file(injector, commands, counts, tmp_path, command):
    """What a killed run left, one byte of one file changed: found and said, or harmless."""
    (call, expected), _ = commands[command]
    count = counts[command]
    rng = random.Random(f"bytes {command} {count}")
    moments = range(2, count, 7) if ALL else rng.sample(range(count // 3, count), 2)
    for at in moments:
        left = tmp_path / f"left-{at}"
        left.mkdir()
        assert killed_at(injector, call, left, at) == -signal.SIGKILL
        if (left / "result").exists():
            continue
        files = sorted(p for p in left.rglob("*") if p.is_file() and p.stat().st_size > 0)
        for file in files if ALL else rng.sample(files, min(4, len(files))):
            folder = tmp_path / "flipped"
            shutil.copytree(left, folder, symlinks=True)
            victim = folder / file.relative_to(left)
            content = bytearray(victim.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
            done = again(call, folder, expected)
            assert done.returncode == 0 or any(words in done.stderr for words in REFUSALS[1:]), f"{victim}: {done.stderr}"
            shutil.rmtree(folder)
        shutil.rmtree(left)
