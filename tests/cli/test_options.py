"""What options alone can tell is told before a model is opened or fetched; an option that would change nothing is not passed over."""

import ctypes
import json
import os
import shutil
from pathlib import Path

import pytest
from support import LQUANT, TINY, random_model, run, text_rows, tree

# A model of the hub, which the tests cannot reach: who asks for it first has not looked at the options.
FAR = "org/nowhere"


def refused(folder, arguments, code, *parts):
    """One sentence with all `parts`, on stderr alone; the folder stays as it was."""
    before = tree(folder)
    done = run(*arguments, code=code, cwd=folder)
    assert done.stdout == "" and done.stderr.startswith("lquant: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
    assert "hub" not in done.stderr.replace("on the hub", ""), done.stderr
    assert tree(folder) == before


DWQ, GPTQ, AWQ = (["dwq", "-m", FAR, "--data-path", "rows.jsonl"], ["gptq", "-m", FAR], ["awq", "-m", FAR])
AUTO, DYNAMIC, CONVERT = ["auto", "-m", FAR], ["dynamic_quant", "-m", FAR], ["convert", "-m", FAR]
PERPLEXITY, EVALUATE = ["perplexity", "-m", FAR, "--data-path", "words.txt"], ["evaluate", "-m", FAR, "--tasks", "piqa"]
REPORT = ["report", FAR, "--teacher", FAR, "--data-path", "words.txt"]
GENERATE = ["generate", "--model", FAR]

# The whole command, and what its sentence names: the options without effect and what makes them so.
IDLE = [
    ([*DWQ, "--quantized-model", FAR, "--bits", 3], "--bits has no effect with --quantized-model"),
    ([*DWQ, "--quantized-model", FAR, "--group-size", 32, "--plan", "p.json"], "--group-size and --plan have no effect with --quantized-model"),
    ([*DWQ, "--targets", "topk"], "--targets has no effect without --target-dir"),
    (["dwq", "-m", FAR, "--data-path", "self", "--mask-prompt"], "--mask-prompt has no effect on texts without prompts"),
    (["dwq", "-m", FAR, "--data-path", "words.txt", "--mask-prompt"], "--mask-prompt has no effect on texts without prompts"),
    ([*AWQ, "--then-samples", 8], "--then-samples is for a method that follows; give --then"),
    ([*AUTO, "--widths", 4, 5, "--steps", "gptq", "blocks"], "--steps blocks has no effect without 2 or 3 among --widths"),
    ([*DYNAMIC, "--widths", 3, 4, "--low-bits", 3], "--low-bits has no effect with --widths"),
    ([*DYNAMIC, "--widths", 3, 4, "--high-group-size", 32, "--low-group-size", 32], "--low-group-size and --high-group-size have no effect"),
    ([*DYNAMIC, "--group-sizes", 32], "--group-sizes has no effect without --widths"),
    ([*DYNAMIC, "--sensitivities", "rows.jsonl", "--sensitivity-tokens", 8], "--sensitivity-tokens has no effect with --sensitivities"),
    ([*DYNAMIC, "--plan-only", "plan.json", "--mlx-path", "out", "--report-ppl"], "--mlx-path and --report-ppl have no effect with --plan-only"),
    ([*DYNAMIC, "--rule", "threshold", "--widths", 3, 4], "--rule threshold chooses between --low-bits and --high-bits"),
    *[([*command, "--expert-tokens", 8], "--expert-tokens has no effect on texts sampled from the model") for command in (GPTQ, AWQ, DYNAMIC)],
    ([*GPTQ, "--data-path", "rows.jsonl", "--expert-tokens", 8], "--expert-tokens has no effect without --num-samples"),
    ([*CONVERT, "--q-bits", 4], "--q-bits has no effect without --quantize"),
    ([*CONVERT, "--q-mode", "mxfp4", "--q-group-size", 32], "--q-group-size and --q-mode have no effect without --quantize"),
    ([*CONVERT, "-d", "--q-bits", 4], "--q-bits has no effect without --quantize"),
    ([*CONVERT, "--plan", "p.json"], "--plan says how to quantize; give --quantize"),
    ([*PERPLEXITY, "--report", "r.html"], "give --teacher"),
    ([*PERPLEXITY, "--seed", 5], "--seed has no effect on a .txt file"),
    ([*REPORT, "--seed", 5], "--seed has no effect on a .txt file"),
    ([*REPORT, "--layers", "none", "--layer-samples", 8], "--layer-samples has no effect with --layers none"),
    ([*EVALUATE, "--no-apply-chat-template", "--chat-template-args", "{}"], "--chat-template-args has no effect with --no-apply-chat-template"),
    ([*EVALUATE, "--no-apply-chat-template", "--fewshot-as-multiturn"], "--fewshot-as-multiturn has no effect with --no-apply-chat-template"),
    ([*GENERATE, "--ignore-chat-template", "--system-prompt", "x"], "--system-prompt has no effect with --ignore-chat-template"),
    ([*GENERATE, "--ignore-chat-template", "--chat-template-config", "{}"], "--chat-template-config has no effect with --ignore-chat-template"),
]

# The whole command, its exit code, and parts of its sentence.
EARLY = [
    # formats
    ([*DWQ, "--bits", 7], 1, "7 bits", "--bits"),
    ([*DWQ, "--bits", 8], 2, "--bits 8 leaves nothing to train"),
    ([*DWQ, "--group-size", 48], 1, "48", "--group-size"),
    ([*GPTQ, "--bits", 1], 1, "1 bits", "--bits"),
    ([*GPTQ, "--fallback-bits", 7], 1, "7 bits", "--fallback-bits"),
    ([*GPTQ, "--fallback-group-size", 16], 1, "16", "--fallback-group-size"),
    ([*GPTQ, "--embed-bits", 9], 1, "9 bits", "--embed-bits"),
    ([*AWQ, "--embed-bits", 7], 1, "7 bits", "--embed-bits"),
    ([*AWQ, "--embed-group-size", 48], 1, "48", "--embed-group-size"),
    ([*AWQ, "--bits", 8, "--then", "dwq"], 2, "--then dwq has nothing to train at --bits 8"),
    ([*AWQ, "--then", "dwq", "--sequence-length", 1], 2, "--sequence-length of 2"),
    ([*AWQ, "--then", "dwq", "--data-path", "rows.jsonl", "words.txt"], 2, "one file or folder of --data-path"),
    ([*AUTO, "--widths", 3, 7], 1, "7 bits", "--widths"),
    ([*AUTO, "--group-sizes", 64, 63], 1, "63", "--group-sizes"),
    ([*DYNAMIC, "--low-bits", 7], 1, "7 bits", "--low-bits"),
    ([*DYNAMIC, "--high-group-size", 48], 1, "48", "--high-group-size"),
    ([*DYNAMIC, "--widths", 9], 1, "9 bits", "--widths"),
    ([*DYNAMIC, "--low-bits", 5, "--high-bits", 4], 2, "is no more precise than"),
    ([*CONVERT, "-q", "--q-bits", 7], 1, "7 bits", "--q-bits"),
    ([*CONVERT, "-q", "--q-mode", "mxfp4", "--q-bits", 3], 1, "mode mxfp4"),
    (["demo", "--bits", 9], 1, "9 bits", "--bits"),
    (["demo", "--bits", 8], 2, "nothing to train"),
    # counts
    *[([*DWQ, flag, value], 2, flag, str(value)) for flag in ("--num-samples", "--num-valid", "--batch-size") for value in (0, -1, 1 << 40)],
    *[([*command, "--num-samples", value], 2, "--num-samples") for command in (GPTQ, AWQ, DYNAMIC, PERPLEXITY, REPORT) for value in (0, -2, 1 << 40)],
    ([*AUTO, "--num-samples", 0], 2, "--num-samples"),
    ([*AWQ, "--then", "gptq", "--then-samples", 0], 2, "--then-samples"),
    ([*DYNAMIC, "--sensitivity-tokens", 0], 2, "--sensitivity-tokens"),
    ([*PERPLEXITY, "--sequence-length", 1 << 30], 2, "--sequence-length"),
    ([*PERPLEXITY, "--batch-size", 1 << 30], 2, "--batch-size"),
    ([*REPORT, "--layer-samples", 0], 2, "--layer-samples"),
    ([*DWQ, "--learning-rate", "inf"], 2, "--learning-rate"),
    ([*DWQ, "--temperature", "nan"], 2, "--temperature"),
    ([*GPTQ, "--seed", -1], 2, "--seed"),
    # what sampling needs
    ([*GENERATE, "--max-tokens", 0], 2, "--max-tokens"),
    ([*GENERATE, "--top-p", 3], 2, "--top-p"),
    ([*GENERATE, "--temp", -1], 2, "--temp"),
    ([*GENERATE, "--chat-template-config", "[1]"], 1, "--chat-template-config must be a JSON object"),
    ([*EVALUATE, "--chat-template-args", "[1]"], 2, "--chat-template-args is no JSON object"),
    # names
    (["evaluate", "-m", FAR, "--tasks", "nonsense"], 1, "there is no task nonsense (tasks: arc_challenge"),
    (["evaluate", "-m", FAR, "--tasks", "piqua"], 1, "there is no task piqua; did you mean piqa? (tasks: arc_challenge"),
    (["evaluate", "-m", FAR, "--tasks", "mmlu"], 1, "there is no task mmlu (tasks: arc_challenge"),
    ([*CONVERT, "-q", "--quant-predicate", "mixed_9_9"], 2, "--quant-predicate mixed_9_9: there is no such recipe"),
    ([*CONVERT, "--dtype", "int8"], 2, "--dtype int8"),
    ([*CONVERT, "-q", "--upload-repo", "me"], 2, "--upload-repo me is no name of a repository"),
    (["upload", "--path", "model", "--upload-repo", "me"], 2, "--upload-repo me is no name of a repository"),
    ([*AUTO, "--steps", "gptqq"], 2, "--steps gptqq is none of awq, gptq, blocks, dwq; did you mean gptq?"),
    # the same twice
    ([*AUTO, "--steps", "gptq", "gptq"], 2, "--steps names gptq twice"),
    ([*AUTO, "--widths", 4, 4], 2, "--widths names 4 twice"),
    ([*DYNAMIC, "--widths", 4, "--group-sizes", 64, 64], 2, "--group-sizes names 64 twice"),
    ([*EVALUATE, "boolq", "piqa"], 2, "--tasks names piqa twice"),
    # sizes
    ([*AUTO, "--target-size", "lots"], 2, "--target-size lots is no size"),
    ([*DYNAMIC, "--floor", "4"], 2, "--floor 4 is not PATTERN=BITS"),
    # what is to be read and is not there
    (["dwq", "-m", FAR, "--data-path", "./none.jsonl"], 1, "./none.jsonl", "--data-path"),
    ([*GPTQ, "--data-path", "self", "rows.jsonl"], 1, "self is given with other --data-path"),
    ([*GPTQ, "--plan", "./none.json"], 1, "./none.json", "--plan"),
    ([*GPTQ, "--scales", "./none"], 1, "./none", "--scales"),
    ([*DYNAMIC, "--sensitivities", "./none.json"], 1, "./none.json", "--sensitivities"),
    ([*DWQ, "--quantized-model", "./none"], 1, "./none", "--quantized-model"),
    ([*PERPLEXITY, "--teacher", "./none"], 1, "./none: there is no such folder", "--teacher"),
    ([*PERPLEXITY, "--teacher", "./none.gguf"], 1, "./none.gguf: cannot be opened", "--teacher"),
    (["report", FAR, "--teacher", "./none", "--data-path", "words.txt"], 1, "./none", "--teacher"),
    ([*EVALUATE, "--data-dir", "./none"], 1, "./none", "--data-dir"),
    (["logits", "-m", FAR, "--ids", "./none.json", "--output", "x"], 1, "./none.json", "--ids"),
    (["perplexity", "-m", "model", "--data-path", FAR, "--record"], 1, "model/lquant.json: is not there", "--record"),
]

# Commands that write, with the flag that says where: a folder that is made with its parents, or a file for which there must be one.
FOLDERS = {"--mlx-path": [DWQ, GPTQ, AWQ, AUTO, DYNAMIC, CONVERT], "--target-dir": [DWQ], "--output-dir": [EVALUATE], "--output": [["demo"]]}
FILES = {
    "--plan-only": [DYNAMIC],
    "--pareto": [DYNAMIC],
    "--report": [[*PERPLEXITY, "--teacher", FAR]],
    "--output": [REPORT, ["logits", "-m", FAR, "--ids", "rows.jsonl"]],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    random_model(folder / "model")
    text_rows(folder / "rows.jsonl")
    (folder / "words.txt").write_text("the river " * 100)
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0o555)
    return folder


@pytest.mark.parametrize("arguments,sentence", IDLE)
def test_an_option_without_effect(place, arguments, sentence):
    refused(place, arguments, 2, sentence)


@pytest.mark.parametrize("arguments,code,parts", [(a, c, parts) for a, c, *parts in EARLY])
def test_told_before_anything_is_opened(place, arguments, code, parts):
    refused(place, arguments, code, *parts)


@pytest.mark.parametrize("flag,command", [(flag, command) for flag, commands in FOLDERS.items() for command in commands])
def test_folders_that_cannot_be_made(place, flag, command):
    refused(place, [*command, flag, "rows.jsonl/out"], 1, "rows.jsonl is no folder", flag)
    if flag == "--mlx-path":
        refused(place, [*command, flag, "model"], 1, "model: exists already; choose another --mlx-path")


@pytest.mark.parametrize("flag,command", [(flag, command) for flag, commands in FILES.items() for command in commands])
def test_files_that_cannot_be_written(place, flag, command):
    refused(place, [*command, flag, "nowhere/out"], 1, "nowhere: there is no such folder", flag)
    refused(place, [*command, flag, "rows.jsonl/out"], 1, "rows.jsonl is no folder", flag)
    if command[0] != "report":  # which says that the page exists already
        refused(place, [*command, flag, "model"], 1, "model: is a folder", flag)


def as_everybody():
    """In the child: permissions hold for root too, once the capabilities that pass over them are gone."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, out of the bounding set (PR_CAPBSET_DROP)
        prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="capabilities are Linux's")
@pytest.mark.parametrize("arguments", [[*DWQ, "--mlx-path", "locked/a/b"], [*DYNAMIC, "--pareto", "locked/p.json"], [*DWQ, "--target-dir", "locked"]])
def test_folders_without_permission(place, arguments):
    done = run(*arguments, code=1, cwd=place, preexec_fn=as_everybody)
    assert "locked cannot be written to (Permission denied)" in done.stderr and arguments[-2] in done.stderr


def options_of(command):
    """The options that take one value, as the help names them."""
    import re

    text = run(command, "--help").stdout
    return re.findall(r"^  (?:-\w,)?(--[\w-]+)(?:,--[\w-]+)* (?:TEXT|INT|UINT|FLOAT)(?!.* \.\.\.)", text, re.MULTILINE)


@pytest.mark.parametrize("command", ["dwq", "gptq", "awq", "auto", "dynamic_quant", "convert", "perplexity", "report", "evaluate", "generate", "upload", "demo"])
def test_empty_values(place, command):
    needed = {"--model": "model", "--data-path": "words.txt", "--teacher": "model", "--tasks": "piqa", "--upload-repo": "a/b"}
    help_text = run(command, "--help").stdout
    flags = options_of(command)
    assert len(flags) > 1
    for flag in flags:
        rest = [part for name, value in needed.items() if name in help_text and name != flag for part in (name, value)]
        rest += ["model"] if command == "report" else []
        if flag in ("--prompt", "--system-prompt"):
            continue
        for empty in ([flag, ""], [f"{flag}="]):
            refused(place, [command, *rest, *empty], 2, flag)


def test_what_ends_early_says_what_it_passes_over(place, tmp_path):
    done = run("dwq", "-m", place / "model", "--data-path", place / "rows.jsonl", "--bits", 3, "--num-samples", 4, "--num-valid", 2, "--batch-size", 2,
               "--target-dir", tmp_path / "t", "--targets-only", "--learning-rate", 0.1, "--json")  # fmt: skip
    assert "--bits, --learning-rate and --json have no effect with --targets-only" in done.stderr and done.stdout == ""


def test_what_mlx_lm_passes_over_is_said(place):
    done = run("evaluate", "-m", place / "model", "--tasks", "piqa", "--data-dir", place, "--top-k", 3, "--seed", 7, code=1)
    assert done.stderr.splitlines()[:2] == [
        "--top-k has no effect here: nothing is sampled",
        "--seed has no effect without --num-shots: there are no examples to draw",
    ]
    done = run("generate", "--model", place / "model", "--system-prompt", "be brief", "--prompt", "hi", "--max-tokens", 1)
    assert "--system-prompt has no effect on this model, which has no chat template" in done.stderr
    # At temperature 0 nothing is drawn; mlx_lm says nothing, and scripts that were written for it pass such options always.
    assert run("generate", "--model", place / "model", "--prompt", "hi", "--max-tokens", 1, "--top-p", 0.5, "--seed", 1).stderr == ""


def test_plans_go_before_embed_bits(place, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"model.embed_tokens": {"bits": 8}}))
    for command in ("gptq", "awq"):
        output = tmp_path / command
        done = run(command, "-m", place / "model", "--data-path", place / "rows.jsonl", "--num-samples", 8, "--sequence-length", 16,
                   "--plan", tmp_path / "plan.json", "--embed-bits", 3, "--mlx-path", output)  # fmt: skip
        assert "--plan goes before --embed-bits where it names the embedding" in done.stderr
        assert json.loads((output / "config.json").read_text())["quantization"]["model.embed_tokens"]["bits"] == 8


def test_an_earlier_demo_outlives_a_model_that_does_not_open(place, tmp_path):
    (tmp_path / "shown" / "dwq").mkdir(parents=True)
    (tmp_path / "shown" / "dwq" / "lquant.json").write_text("{}")
    before = tree(tmp_path)
    run("demo", "--model", place / "locked", "--output", tmp_path / "shown", code=1)
    assert tree(tmp_path) == before


# --- dry runs -------------------------------------------------------------------------------------------------------------


def test_autos_dry_run_looks_at_inputs_alone(place, tmp_path):
    """An output that exists is in the way of the run, not of the question; data of the hub are not fetched for it."""
    (tmp_path / "mlx_model").mkdir()
    for data in ("self", "org/data"):
        done = run("auto", "-m", place / "model", "--data-path", data, "--dry-run", cwd=tmp_path)
        assert "plan: model" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mlx_model"] and not list((tmp_path / "mlx_model").iterdir())


@pytest.mark.parametrize("more", [["--data-path", "./none.jsonl"], ["--steps", "gptq", "gptq"], ["--widths", 7], ["--target-size", "x"], ["--num-samples", 0]])
def test_autos_dry_run_refuses_what_the_run_refuses(place, more):
    dry = run("auto", "-m", place / "model", *more, "--dry-run", code=(2, 1)[more[0] in ("--data-path", "--widths")], cwd=place)
    real = run("auto", "-m", place / "model", *more, code=dry.returncode, cwd=place)
    assert dry.stderr == real.stderr


def test_autos_dry_run_opens_the_tokenizer(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    dry = run("auto", "-m", tmp_path / "model", "--dry-run", code=1)
    assert "tokenizer.json" in dry.stderr
    shutil.copytree(place / "model", tmp_path / "other")
    run("convert", "-m", tmp_path / "other", "-q", "--mlx-path", tmp_path / "packed")
    assert "is quantized already" in run("auto", "-m", tmp_path / "packed", "--dry-run", code=1).stderr


def test_uploads_dry_run_needs_no_hub(place, tmp_path):
    """The library for the hub is found along LD_LIBRARY_PATH first, where the file of its name is none."""
    run("convert", "-m", TINY, "-q", "--mlx-path", tmp_path / "packed")
    record = json.loads((tmp_path / "packed" / "lquant.json").read_text())
    record["source"].update({"repo": "org/tiny", "card": "---\nlicense: mit\n---\n"})
    (tmp_path / "packed" / "lquant.json").write_text(json.dumps(record))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liblquant_hub.so").write_text("")
    without = {"LD_LIBRARY_PATH": str(tmp_path / "lib")}
    upload = ["upload", "--path", tmp_path / "packed", "--upload-repo", "me/tiny-4bit"]
    done = run(*upload, "--dry-run", environment=without)
    assert 'base_model: "org/tiny"' in done.stdout and "# tiny-4bit" in done.stdout and "model.safetensors " in done.stdout
    assert 'license: "mit"' in done.stdout  # of the original's card, whose front matter the text crate reads
    before = tree(tmp_path)
    for arguments in (upload, ["convert", "-m", TINY, "-q", "--mlx-path", tmp_path / "other", "--upload-repo", "me/tiny"]):
        assert "make hub" in run(*arguments, code=1, environment=without).stderr  # before anything is made
    assert tree(tmp_path) == before


def test_uploads_dry_run_refuses_what_the_upload_refuses(tmp_path):
    for path, sentence in ((tmp_path / "none", "there is no such folder"), (TINY, "write a README.md")):
        for more in ([], ["--dry-run"]):
            assert sentence in run("upload", "--path", path, "--upload-repo", "me/x", *more, code=1).stderr


def test_auto_leaves_out_what_has_nothing_to_train(place, tmp_path):
    """A budget for 8 bits everywhere: DWQ, which trains fewer, is no reason to fail behind all other steps."""
    done = run("auto", "-m", place / "model", "--data-path", place / "rows.jsonl", "--num-samples", 8, "--sequence-length", 16, "--steps", "blocks", "dwq",
               "--target-size", "1GB", "--mlx-path", tmp_path / "out")  # fmt: skip
    assert "step blocks is left out: " in done.stderr and "step dwq is left out: " in done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("command", [["perplexity", "--data-path", "words.txt", "--num-samples", 1, "--sequence-length", 8], ["generate", "--max-tokens", 1]])
def test_trusting_remote_code_is_said_not_to_be_needed(place, command):
    done = run(*command, "--model", "model", "--trust-remote-code", cwd=place)
    assert "--trust-remote-code is not needed: lquant never runs code from a model folder\n" in done.stderr


def test_options_of_chats_on_a_model_without_a_template(place, tmp_path):
    (tmp_path / "rows" / "piqa").mkdir(parents=True)
    (tmp_path / "rows" / "piqa" / "validation.jsonl").write_text(json.dumps(dict(goal="warm room", sol1="a fire", sol2="a window", label=0)) + "\n")
    done = run("evaluate", "-m", place / "model", "--tasks", "piqa", "--data-dir", tmp_path / "rows", "--output-dir", tmp_path, "--chat-template-args", '{"a": 1}')
    assert "has no chat template, so --chat-template-args and --fewshot-as-multiturn have no effect" in done.stderr


def test_measuring_what_was_measured(place, tmp_path):
    common = ["dynamic_quant", "-m", place / "model", "--data-path", place / "rows.jsonl", "--num-samples", 16, "--sequence-length", 16, "--measure"]
    run(*common, "--plan-only", tmp_path / "a.json", cwd=tmp_path)
    (found,) = tmp_path.glob("*_sensitivities.lquant.json")
    assert "--measure changes nothing" in run(*common, "--plan-only", tmp_path / "b.json", "--sensitivities", found, cwd=tmp_path).stderr
