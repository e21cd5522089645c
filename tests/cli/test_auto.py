"""`lquant auto`: the plan that it prints, the steps that it keeps, and what it leaves."""

import json
import signal
import subprocess
import time

import mlx_lm
import pytest
from mlx_lm.utils import compute_bits_per_weight
from support import ENVIRONMENT, LQUANT, encode, kl, reseal, run, sentences, tensors, text_rows, tree

SMALL = ["--num-samples", 48, "--sequence-length", 32, "--target-bpw", 3]


@pytest.fixture(scope="module")
def made(model, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    done = run("auto", "--model", model, "--data-path", rows, "--mlx-path", folder / "result", *SMALL, "--json")
    return folder / "result", json.loads(done.stdout), done.stderr


def test_it_says_the_plan_first_and_keeps_what_helps(made):
    folder, figures, said = made
    order = [said.index(text) for text in ("plan: small", "together  about", "step allocate", "step awq", "step gptq", "step blocks", "step dwq", "saved to")]
    assert order == sorted(order)
    assert [s["step"] for s in figures["steps"]] == ["allocate", "awq", "gptq", "blocks", "dwq"]
    best = float("inf")
    for step in figures["steps"]:
        assert step["kept"] == (step["kl"] < best) and step["expected_seconds"] > 0 and step["expected_memory"] > 0
        best = min(best, step["kl"])
    assert best < figures["steps"][0]["kl"]
    before = figures["steps"][0]["kl"]
    assert "kl_difference" not in figures["steps"][0]
    for step in figures["steps"][1:]:
        assert step["kl_difference"] == pytest.approx(step["kl"] - before, abs=1e-9)
        # The same rows are hard for both models: a difference between them is known better than either.
        assert 0 < step["kl_difference_se"] < step["kl_se"]
        shown = f"{abs(step['kl_difference']):.5f} ± {step['kl_difference_se']:.5f} {'lower' if step['kept'] else 'higher'} than before"
        assert f"{step['step']}: KL {step['kl']:.5f} ± {step['kl_se']:.5f} on rows held out, {shown}: {'kept' if step['kept'] else 'undone'}\n" in said
        before = min(before, step["kl"])
    record = json.loads((folder / "lquant.json").read_text())
    assert record["command"] == "auto" and record["quality"]["held_out_kl"] == best and len(record["quality"]["steps"]) == 5
    assert record["data"]["files"][0]["file"] == "rows.jsonl"
    assert record["source"]["name"] == "small"


def test_the_result_loads_within_the_budget_and_beats_plain_rounding(made, model, tmp_path):
    folder, figures, _ = made
    loaded, tokenizer = mlx_lm.load(str(folder))
    assert mlx_lm.generate(loaded, tokenizer, "the old river", max_tokens=4)
    assert compute_bits_per_weight(loaded) == pytest.approx(figures["bits_per_weight"], abs=1e-9)
    assert figures["bits_per_weight"] <= 3 and figures["bytes"] == sum(t.nbytes for t in tensors(folder).values())
    run("convert", "--model", model, "-q", "--q-bits", 3, "--mlx-path", tmp_path / "plain")  # half a bit more, for the scales
    held_out = [ids[:24] for ids in encode(sentences(12, seed=1000, words=30))]
    assert kl(model, folder, held_out) < kl(model, tmp_path / "plain", held_out)
    assert [p.name for p in folder.parent.iterdir()] == ["result"]


def test_a_dry_run_does_nothing(tmp_path):
    """On the embedded model, with no argument but that."""
    done = run("auto", "--dry-run", "--json", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert [s["step"] for s in figures["steps"]] == ["allocate", "awq", "gptq", "blocks", "dwq"]
    assert all(s["expected_seconds"] > 0 and "kl" not in s for s in figures["steps"])
    assert "plan: tiny (6.5 million weights" in done.stderr and "4 bits per weight, 3.26 MB" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_steps_can_be_left_out(model, rows, tmp_path):
    done = run("auto", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "out", *SMALL, "--steps", "gptq")
    table = [line.split()[0] for line in done.stdout.strip().split("\n")]
    assert table == ["step", "allocate", "gptq"]
    assert "--steps smooth is none of" in run("auto", "--model", model, "--mlx-path", tmp_path / "b", "--steps", "smooth", code=2).stderr


def killed_at(arguments, moment):
    """Kills the command when a file is there, or a little later."""
    process = subprocess.Popen([str(a) for a in (LQUANT, *arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    while process.poll() is None and not moment.exists():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_one_row_held_out_has_no_error(model, tmp_path):
    """Of 8 rows one is held out. Its error is not known: it is left out of texts, null in JSON, and a killed run goes on over it."""
    few = text_rows(tmp_path / "few.jsonl", count=8)
    arguments = ["auto", "--model", model, "--data-path", few, "--sequence-length", 32, "--target-bpw", 4, "--steps", "gptq", "--mlx-path"]
    done = run(*arguments, tmp_path / "result")
    assert "the texts held out fill one row" in done.stderr and "gptq: KL " in done.stderr
    judged = [line for line in done.stderr.splitlines() if line.startswith(("allocate: ", "gptq: "))]
    assert len(judged) == 2 and all("±" not in text and "nan" not in text for text in (*judged, done.stdout))
    steps = json.loads((tmp_path / "result" / "lquant.json").read_text())["quality"]["steps"]
    assert [s["kl_se"] for s in steps] == [None, None] and steps[1]["kl_difference_se"] is None
    assert steps[1]["kept"] == (steps[1]["kl_difference"] < 0) == (steps[1]["kl"] < steps[0]["kl"])
    killed_at([*arguments, tmp_path / "again"], tmp_path / "again.lquant-run" / "judged-allocate.safetensors")
    figures = json.loads(run(*arguments, tmp_path / "again", "--json").stdout)
    assert [s["kl_se"] for s in figures["steps"]] == [None, None]
    assert tree(tmp_path / "again") == tree(tmp_path / "result")


def test_a_judged_unit_of_an_earlier_version_is_made_again(model, tmp_path):
    """It holds the mean alone, from which no paired error can be taken; the step that it judged stays."""
    few = text_rows(tmp_path / "few.jsonl", count=16)
    arguments = ["auto", "--model", model, "--data-path", few, "--sequence-length", 32, "--target-bpw", 4, "--steps", "gptq", "--mlx-path", tmp_path / "result"]
    unit = tmp_path / "result.lquant-run" / "judged-allocate.safetensors"
    killed_at(arguments, unit)
    reseal(unit, {"kl": 1e-9, "kl_se": 0.0})
    done = run(*arguments)
    assert "continuing the run in" in done.stderr and "step allocate" not in done.stderr
    steps = json.loads((tmp_path / "result" / "lquant.json").read_text())["quality"]["steps"]
    assert steps[0]["kl"] > 1e-6 and steps[1]["kl_difference"] == pytest.approx(steps[1]["kl"] - steps[0]["kl"], abs=1e-9)


def test_the_embedded_model_with_its_own_texts(tmp_path):
    done = run("auto", "--mlx-path", "out", "--num-samples", 8, "--sequence-length", 32, "--steps", "gptq", cwd=tmp_path)
    assert "sampling texts from the model" in done.stderr
    assert json.loads((tmp_path / "out" / "lquant.json").read_text())["data"]["source"] == "self"
    mlx_lm.load(str(tmp_path / "out"))


def test_refusals(model, rows, tmp_path):
    run("convert", "--model", model, "-q", "--mlx-path", tmp_path / "q")
    assert "is quantized already; start from the original" in run("auto", "--model", tmp_path / "q", "--mlx-path", tmp_path / "x", code=1).stderr
    assert "exists already" in run("auto", "--model", model, "--mlx-path", tmp_path / "q", code=1).stderr
    one = text_rows(tmp_path / "one.jsonl", count=1)
    assert "give at least 2" in run("auto", "--model", model, "--data-path", one, "--mlx-path", tmp_path / "x", code=1).stderr
    said = run("auto", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "x", *SMALL[:-1], 1, code=1).stderr
    assert "a target of 1 bits per weight is too little" in said
    assert not (tmp_path / "x").exists()


# Files that appear one after the other, each in another step of the run.
MOMENTS = ["steps/rows/train.jsonl", "steps/allocate.new.lquant-run/states-00001.safetensors", "steps/allocate.new.lquant-run/gradients-00000.safetensors",
           "steps/allocate.new.lquant-run/start-*-00001.safetensors", "steps/allocate/config.json", "steps/awq.new.lquant-run/block-00000.safetensors", "steps/gptq.new.lquant-run/block-00000.safetensors",
           "steps/blocks.new.lquant-run/block-00000.safetensors", "judged-blocks.safetensors", "steps/dwq.new.lquant-run/state.safetensors", "steps/dwq/config.json"]


def test_kills(made, model, rows, tmp_path):
    """Killed again and again, the command ends in the bytes of an undisturbed run."""
    arguments = [LQUANT, "auto", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *SMALL]
    killed = 0
    for moment in MOMENTS:
        process = subprocess.Popen([str(a) for a in arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(ENVIRONMENT, LQUANT_SAVE_SECONDS="0"))
        while process.poll() is None and not any((tmp_path / "result.lquant-run").glob(moment)):
            time.sleep(0.002)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if (tmp_path / "result").exists():
            break
    assert killed >= 6
    if not (tmp_path / "result").exists():
        run(*arguments[1:])
    assert tree(tmp_path / "result") == tree(made[0])
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_an_interrupt_is_continued(model, rows, tmp_path):
    arguments = [LQUANT, "auto", "--model", model, "--data-path", rows, "--mlx-path", tmp_path / "result", *SMALL]
    process = subprocess.Popen([str(a) for a in arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while process.poll() is None and not (tmp_path / "result.lquant-run" / "steps" / "awq.new.lquant-run" / "block-00000.safetensors").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and "give the same command again to continue" in said.strip().split("\n")[-1]
    assert "continuing the run in" in run(*arguments[1:]).stderr
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
