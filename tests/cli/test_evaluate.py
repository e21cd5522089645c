"""`lquant evaluate` on invented rows: what it writes, what it refuses, and that a killed run ends in the bytes of one left alone."""

import json
import shutil
import signal
import subprocess
import time

import mlx.core as mx
import pytest
from support import ENVIRONMENT, LQUANT, TINY, encode, limit_files, log_softmax, numpy_logits, random_model, run, tensors, tokenizer_with_more, tree

LIMIT = 14


def rows_of(count):
    return {
        "arc_challenge/test": [dict(question=f"What follows {i}?", choices=[f"{i + 1}", f"{i}", "none"], answer_index=i % 3) for i in range(count)],
        "arc_easy/test": [
            dict(question=f"Where is stone {i}?", choices=dict(text=["in the river", "on the old roof"], label=["A", "B"]), answerKey="AB"[i % 2])
            for i in range(count)
        ],
        "boolq/validation": [dict(passage=f"House {i} stands quietly.", question=f"is house {i} loud", label=i % 2) for i in range(count)],
        "hellaswag/validation": [
            dict(
                activity_label="Reading",
                ctx_a=f"She opens book {i}.",
                ctx_b="she",
                endings=["reads it.", "eats it.", "is a tree.", "flies."],
                label=str(i % 4),
            )
            for i in range(count)
        ],
        "openbookqa/test": [dict(question=f"Winter {i} brings", choices=["snow", "heat", "figs", "ink"], answer_index=i % 4) for i in range(count)],
        "piqa/validation": [dict(goal=f"warm room {i}", sol1="light a fire", sol2="open the window wide", label=i % 2) for i in range(count)],
        "social_iqa/validation": [
            dict(context=f"Ada sang song {i}.", question="Why?", answerA="joy", answerB="by walking", answerC="a table", label=str(1 + i % 3))
            for i in range(count)
        ],
        "winogrande/validation": [
            dict(sentence=f"The bread {i} was not in the bag since the _ was small.", option1="bag", option2="bread", answer=str(1 + i % 2))
            for i in range(count)
        ],
    }


ROWS = rows_of(LIMIT)
TASKS = sorted({name.split("/")[0] for name in ROWS})


def write_rows(folder, rows=ROWS):
    for name, part in rows.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of an undisturbed run of all tasks, with small batches."""
    output = tmp_path_factory.mktemp("whole")
    run("evaluate", "--model", TINY, "--tasks", *TASKS, "--data-dir", data, "--output-dir", output, "--batch-size", 1)
    return output


def results_name(tasks, shots=""):
    return f"eval_{str(TINY).replace('/', '_')}_0.4.13{shots}_{'_'.join(tasks)}"


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_files_are_those_of_the_peer(whole):
    name = results_name(TASKS)
    assert sorted(p.name for p in whole.iterdir()) == [name, name + ".json", name + ".rows.jsonl"]
    results = json.loads((whole / name).read_text())
    assert (whole / name).read_text() == json.dumps(results, indent=4)  # mlx_lm.evaluate's own bytes
    assert list(results) == TASKS
    head, acc, norm = ["name", "alias", "sample_len"], ["acc,none", "acc_stderr,none"], ["acc_norm,none", "acc_norm_stderr,none"]
    for task, found in results.items():
        assert list(found) == head + acc + (norm if task in ("arc_challenge", "arc_easy", "hellaswag", "openbookqa", "piqa") else [])
        assert (found["name"], found["alias"], found["sample_len"]) == (task, task, LIMIT)
    report = json.loads((whole / (name + ".json")).read_text())
    assert report["results"] == results
    assert report["versions"] == {task: {"boolq": 2.0, "social_iqa": 0.0}.get(task, 1.0) for task in TASKS}
    assert report["n-samples"]["piqa"] == {"original": LIMIT, "effective": LIMIT}
    assert report["n-shot"]["piqa"] == 0 and report["higher_is_better"]["piqa"] == {"acc": True, "acc_norm": True}
    assert report["config"]["apply_chat_template"] is False and report["config"]["max_tokens"] > 0


def test_accuracies_follow_from_the_rows(whole):
    name = results_name(TASKS)
    results, rows = json.loads((whole / name).read_text()), read_rows(whole / (name + ".rows.jsonl"))
    for task in TASKS:
        own = [row for row in rows if row["task"] == task]
        assert [row["row"] for row in own] == list(range(LIMIT))
        acc = [row["loglikelihoods"].index(max(row["loglikelihoods"])) == row["gold"] for row in own]
        assert acc == [row["acc"] for row in own]
        mean = sum(acc) / LIMIT
        assert results[task]["acc,none"] == pytest.approx(mean)
        assert results[task]["acc_stderr,none"] == pytest.approx((mean * (1 - mean) / (LIMIT - 1)) ** 0.5)


def test_likelihoods_are_the_models(whole, data):
    """Of piqa, against NumPy. bf16 rounds each of some 40 steps by 2^-9 relative: logits near 10 err by 0.2 at the most, a token's
    log-probability by twice that, and on the mean over an answer's tokens far less; 0.15 a token is a wide bound, and a wrong prompt is off
    by whole nats."""
    found = [row["loglikelihoods"] for row in read_rows(whole / (results_name(TASKS) + ".rows.jsonl")) if row["task"] == "piqa"]
    for row, likelihoods in list(zip(ROWS["piqa/validation"], found))[:4]:
        for answer, got in zip((row["sol1"], row["sol2"]), likelihoods):
            context, ids = encode([f"Question: {row['goal']}\nAnswer:", f"Question: {row['goal']}\nAnswer: {answer}"])
            scores = log_softmax(numpy_logits(TINY, [ids]))[0]
            wanted = [scores[t - 1, ids[t]] for t in range(len(context), len(ids))]
            assert got == pytest.approx(sum(wanted), abs=0.15 * len(wanted))


def test_json_table_limit_and_shots(data, tmp_path):
    rows = write_rows(tmp_path / "rows", dict(ROWS, **{"piqa/train": ROWS["piqa/validation"][3:]}))
    arguments = ["evaluate", "--model", TINY, "--tasks", "piqa", "--data-dir", rows, "--num-shots", 3, "--limit", 5]
    done = run(*arguments, "--output-dir", tmp_path / "a", "--json")
    report = json.loads(done.stdout)
    assert report["n-samples"]["piqa"] == {"original": LIMIT, "effective": 5} and report["n-shot"] == {"piqa": 3}
    assert (tmp_path / "a" / results_name(["piqa"], "_03")).exists()
    table = run(*arguments, "--output-dir", tmp_path / "b").stdout.splitlines()
    assert table[0].split()[:2] == ["task", "metric"] and [line.split()[:2] for line in table[1:]] == [["piqa", "acc"], ["piqa", "acc_norm"]]
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_batch_size_changes_nothing_but_rounding(whole, data, tmp_path):
    run("evaluate", "--model", TINY, "--tasks", *TASKS, "--data-dir", data, "--output-dir", tmp_path, "--batch-size", 64)
    name = results_name(TASKS) + ".rows.jsonl"
    for a, b in zip(read_rows(whole / name), read_rows(tmp_path / name), strict=True):
        assert a["loglikelihoods"] == pytest.approx(b["loglikelihoods"], abs=0.2)  # bf16, as above


def test_compare_pairs_two_models(data, tmp_path):
    other = tmp_path / "3bit"
    run("convert", "--model", TINY, "-q", "--q-bits", 3, "--mlx-path", other)
    done = run("evaluate", "--model", other, "--compare", TINY, "--tasks", "piqa", "boolq", "--data-dir", data, "--output-dir", tmp_path / "out")
    assert "difference" in done.stdout.splitlines()[0]
    name = f"eval_{str(other).replace('/', '_')}_0.4.13_piqa_boolq"
    report, rows = json.loads((tmp_path / "out" / (name + ".json")).read_text()), read_rows(tmp_path / "out" / (name + ".rows.jsonl"))
    alone = run("evaluate", "--model", TINY, "--tasks", "piqa", "boolq", "--data-dir", data, "--output-dir", tmp_path / "teacher", "--json")
    assert report["teacher_results"] == json.loads(alone.stdout)["results"]
    pair = report["comparison"]["piqa"]["acc,none"]
    right = lambda row, key: row[key].index(max(row[key])) == row["gold"]
    own = [(right(row, "loglikelihoods"), right(row, "teacher_loglikelihoods")) for row in rows if row["task"] == "piqa"]
    assert (pair["gained"], pair["lost"]) == (own.count((True, False)), own.count((False, True)))
    assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1] and 0 < pair["p_mcnemar"] <= 1


def test_chat_templates(data, tmp_path):
    model = random_model(tmp_path / "chat", chat=True)
    arguments = ["evaluate", "--model", model, "--tasks", "boolq", "--data-dir", data, "--limit", 2, "--json"]
    by_default = json.loads(run(*arguments, "--output-dir", tmp_path / "a").stdout)
    assert by_default["config"]["apply_chat_template"] is True
    plain = json.loads(run(*arguments, "--output-dir", tmp_path / "b", "--no-apply-chat-template").stdout)
    assert plain["config"]["apply_chat_template"] is False
    rows = [read_rows(next((tmp_path / x).glob("*.rows.jsonl"))) for x in "ab"]
    assert rows[0][0]["loglikelihoods"] != rows[1][0]["loglikelihoods"]
    run(*arguments, "--output-dir", tmp_path / "c", "--chat-template-args", '{"enable_thinking": false}')


def test_long_prompts_lose_their_beginning(data, tmp_path):
    arguments = ["evaluate", "--model", TINY, "--tasks", "arc_easy", "--data-dir", data]
    done = run(*arguments, "--output-dir", tmp_path / "a", "--max-tokens", 12)
    assert f"{LIMIT} of {LIMIT} prompts are longer than the 12 tokens" in done.stderr
    run(*arguments, "--output-dir", tmp_path / "b", "--max-tokens", 1)  # nothing of any context is left
    assert all(row["loglikelihoods"] == [None, None] for row in read_rows(next((tmp_path / "b").glob("*.rows.jsonl"))))


def stopped(arguments, folder, units, how):
    """Starts the run and stops it as soon as `units` of its batches are saved. False when it was done before."""
    process = subprocess.Popen([str(a) for a in (LQUANT, *arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while process.poll() is None and sum(not p.name.endswith(".partial.safetensors") for p in folder.glob("*.safetensors")) < units:
        time.sleep(0.001)
    process.send_signal(how)
    _, stderr = process.communicate()
    assert process.returncode in (0, {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 130}[how]), stderr
    assert process.returncode != 130 or "give the same command again" in stderr
    return process.returncode != 0


def test_killed_runs_end_in_the_same_bytes(tmp_path):
    """The more rows, the more batches follow the one at which a run is stopped: where the machine is too quick for some, four times as many are tried."""
    for count in (4 * LIMIT, 16 * LIMIT, 64 * LIMIT):
        data, output = write_rows(tmp_path / f"rows-{count}", rows_of(count)), tmp_path / f"killed-{count}"
        arguments = ["evaluate", "--model", TINY, "--tasks", *TASKS, "--data-dir", data, "--batch-size", 1, "--output-dir"]
        folder = output / (results_name(TASKS) + ".lquant-run")
        if all(stopped([*arguments, output], folder, units, how) for units, how in ((1, signal.SIGKILL), (3, signal.SIGTERM), (5, signal.SIGKILL))):
            break
    else:
        pytest.fail(f"runs over {count} rows of each task ended before they could be stopped")
    assert [p.name for p in output.iterdir()] == [folder.name]
    assert "continuing the run" in run(*arguments, output).stderr
    run(*arguments, tmp_path / "whole")
    assert tree(output) == tree(tmp_path / "whole")


def test_another_run_is_not_continued(data, tmp_path):
    arguments = ["evaluate", "--model", TINY, "--tasks", *TASKS, "--data-dir", data, "--output-dir", tmp_path]
    folder = tmp_path / (results_name(TASKS) + ".lquant-run")
    # Of all files only that of the rows is larger than this (112 lines of 100 bytes and more): every batch is saved, the results are not.
    done = run(*arguments, "--batch-size", 1, code=1, preexec_fn=lambda: limit_files(8000))
    assert ".rows.jsonl" in done.stderr and "free space" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [folder.name] and list(folder.glob("winogrande-*.safetensors"))
    done = run(*arguments, "--batch-size", 2, code=1)
    assert "batch_size (was 1, now 2)" in done.stderr
    run(*arguments, "--batch-size", 2, "--fresh")
    assert (tmp_path / results_name(TASKS)).exists() and not folder.exists()


def refused(arguments, *parts, code=1, model=TINY):
    done = run("evaluate", "--model", model, *arguments, code=code)
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("lquant: "), done.stderr
    for part in parts:
        assert str(part) in lines[0], lines[0]
    assert done.stdout == ""


def test_bad_input_is_one_sentence(data, whole, tmp_path):
    out = ["--output-dir", tmp_path / "out"]
    refused(["--tasks", "arc_esy", "--data-dir", data, *out], "arc_esy", "did you mean arc_easy?")
    refused(["--tasks", "piqa", *out], "baber/piqa", "cannot be reached", "--data-dir", "TASK/SPLIT.jsonl")
    refused(["--tasks", "piqa", "--data-dir", tmp_path / "none", *out], tmp_path / "none", "no folder")
    refused(["--tasks", "piqa", "--data-dir", data, "--num-shots", 2, *out], "piqa/train.jsonl", "is missing", "--num-shots 2")
    refused(["--tasks", "piqa", "--data-dir", data, "--confirm-run-unsafe-code", *out], "--confirm-run-unsafe-code", "never runs", code=2)
    refused(["--tasks", "piqa", "--data-dir", data, "--chat-template-args", "[1]", *out], "--chat-template-args", "JSON object", code=2)
    refused(["--tasks", "piqa", "--data-dir", data, "--apply-chat-template", *out], "no chat template")
    refused(["--tasks", "piqa", "--data-dir", data, "--limit", 0, *out], "--limit", code=2)
    refused(["--tasks", "piqa", "--data-dir", data, "--batch-size", 0, *out], "--batch-size", code=2)
    refused(["--tasks", *TASKS, "--data-dir", data, "--output-dir", whole], "exists already", "--output-dir")
    refused(["--tasks", "piqa", "--data-dir", data, "--compare", tmp_path / "none", *out], tmp_path / "none")
    empty = write_rows(tmp_path / "empty", {"boolq/validation": []})
    refused(["--tasks", "boolq", "--data-dir", empty, *out], "boolq/validation.jsonl", "no row")
    broken = write_rows(tmp_path / "broken", ROWS)
    file = broken / "piqa" / "validation.jsonl"
    lines = file.read_text().splitlines()
    for line, parts in ((json.dumps(dict(goal="g", sol1="", sol2="b", label=0)), ["piqa", "choice 1 is empty"]), ("{", ["no JSON object"])):
        file.write_text("\n".join([*lines[:4], line, *lines[5:]]))
        refused(["--tasks", "piqa", "--data-dir", broken, *out], f"{file}:5", *parts)
    assert not (tmp_path / "out").exists()


def test_faults_that_model_and_row_have_together_name_the_row(tmp_path):
    model = random_model(tmp_path / "model")
    tokenizer_with_more(model, 8192, "<sep>")
    (model / "chat_template.jinja").write_text("{% if 'river' in messages[0].content %}{{ raise_exception('no rivers') }}{% endif %}{{ messages[0].content }}")
    rows = [dict(goal="g", sol1="a", sol2="b", label=0)] * 3 + [dict(goal="a <sep>", sol1="a", sol2="b", label=0)]
    data = write_rows(tmp_path / "data", {"piqa/validation": rows})
    file = data / "piqa" / "validation.jsonl"
    arguments = ["--tasks", "piqa", "--data-dir", data, "--output-dir", tmp_path / "out"]
    refused(arguments, f"{file}:4: token 8192", "<sep>", "table of 8192", model=model)
    file.write_text("".join(json.dumps(dict(row, goal="a river" if i == 2 else "g")) + "\n" for i, row in enumerate(rows)))
    refused(arguments, f"{file}:3: ", "no rivers", model=model)


def test_a_place_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    refused(["--tasks", "piqa", "--data-dir", data, "--output-dir", tmp_path / "file" / "out"], tmp_path / "file")


# What is asked for, the exit code, and how the one line on stderr begins. {tmp} has the folders of test_each_mistake_has_its_sentence.
MISTAKES = {
    "unknown task": (
        ["--tasks", "helaswag"],
        1,
        "[evaluate] there is no task helaswag; did you mean hellaswag? (tasks: arc_challenge, arc_easy, boolq, hellaswag, openbookqa, piqa, "
        "social_iqa, winogrande)",
    ),
    "no rows of the task": (
        ["--tasks", "piqa", "--data-dir", "{tmp}/empty"],
        1,
        "[pipeline] {tmp}/empty/piqa/validation.jsonl: is missing; it has the rows of piqa (--data-dir holds TASK/SPLIT.jsonl, one JSON object a line)",
    ),
    "a file without rows": (
        ["--tasks", "boolq", "--data-dir", "{tmp}/blank"],
        1,
        "[evaluate] {tmp}/blank/boolq/validation.jsonl: holds no row; it needs one JSON object a line",
    ),
    "an empty choice": (
        ["--tasks", "openbookqa", "--data-dir", "{tmp}/choice"],
        1,
        "[evaluate] {tmp}/choice/openbookqa/test.jsonl:2: no row of openbookqa: its choice 3 is empty; mend or remove that line",
    ),
    "too few examples": (
        ["--tasks", "piqa", "--data-dir", "{tmp}/choice", "--num-shots", 3],
        1,
        "[evaluate] {tmp}/choice/piqa/train.jsonl:1: 2 rows are too few to draw 3 examples from; add rows or lower --num-shots",
    ),
    "batches of nothing": (["--tasks", "piqa", "--batch-size", 0], 2, "--batch-size: Value 0 not in range 1 to 65536; see lquant evaluate --help"),
    "batches of words": (["--tasks", "piqa", "--batch-size", "many"], 2, "--batch-size: Value many not in range"),
    "a limit of nothing": (["--tasks", "piqa", "--limit", 0], 2, "--limit: 0 is not above 0; see lquant evaluate --help"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_has_its_sentence(data, tmp_path, name):
    arguments, code, sentence = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    write_rows(tmp_path / "blank", {"boolq/validation": []})
    good = dict(question="Winter brings", choices=["snow", "heat", "figs"], answer_index=0)
    choices = [good, dict(good, choices=["snow", "heat", ""])]
    pairs = ROWS["piqa/validation"]
    write_rows(tmp_path / "choice", {"openbookqa/test": choices, "piqa/train": pairs[:2], "piqa/validation": pairs})
    filled = [str(a).replace("{tmp}", str(tmp_path)) for a in arguments]
    rows = [] if "--data-dir" in filled else ["--data-dir", data]
    done = run("evaluate", "--model", TINY, *filled, *rows, "--output-dir", tmp_path / "out", code=code)
    assert done.stderr.startswith("lquant: " + sentence.replace("{tmp}", str(tmp_path))) and done.stderr.count("\n") == 1
    assert done.stdout == "" and not (tmp_path / "out").exists()


def test_a_limit_above_the_rows(data, whole, tmp_path):
    done = run("evaluate", "--model", TINY, "--tasks", *TASKS, "--data-dir", data, "--output-dir", tmp_path, "--batch-size", 1, "--limit", LIMIT + 1)
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warned == [f"warning: {task}: there are {LIMIT} rows, fewer than --limit {LIMIT + 1}; all of them are scored" for task in TASKS]
    name = results_name(TASKS)
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    exact = run("evaluate", "--model", TINY, "--tasks", "piqa", "--data-dir", data, "--output-dir", tmp_path, "--limit", LIMIT)
    assert "warning" not in exact.stderr


def test_contexts_longer_than_the_model(data, tmp_path):
    """The model's own limit, from its config.json. What --num-shots has not made long, fewer of them cannot mend."""
    model = random_model(tmp_path / "short", max_position_embeddings=12)
    arguments = ["evaluate", "--model", model, "--tasks", "arc_easy", "--data-dir", data, "--output-dir"]
    report = json.loads(run(*arguments, tmp_path / "json", "--json").stdout)
    assert report["config"]["max_tokens"] == 12 and report["n-samples"]["arc_easy"]["effective"] == LIMIT
    done = run(*arguments, tmp_path / "said")
    long = f"arc_easy: {LIMIT} of {LIMIT} prompts are longer than the 12 tokens that the model reads and lose their beginnings"
    assert f"warning: {long}; give --max-tokens if it reads more\n" in done.stderr
    rows = write_rows(tmp_path / "rows", dict(ROWS, **{"arc_easy/train": ROWS["arc_easy/test"]}))
    done = run("evaluate", "--model", model, "--tasks", "arc_easy", "--data-dir", rows, "--output-dir", tmp_path / "shots", "--num-shots", 1)
    assert f"warning: {long}; use fewer --num-shots\n" in done.stderr


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers(data, tmp_path, value):
    model = random_model(tmp_path / "model")
    file = model / "model.safetensors"
    weights = tensors(model)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float(value)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    arguments = ["--tasks", "piqa", "--data-dir", data, "--output-dir", tmp_path / "out"]
    refused(arguments, file, "model.layers.1.mlp.up_proj.weight", "1 values of", "not finite", "download it again", model=model)
    done = run("evaluate", "--model", TINY, *arguments, "--compare", model, code=1)
    assert f"{file}: tensor" in done.stderr.splitlines()[-1]  # behind a line of progress: the teacher is loaded when the model is done


def test_weights_whose_products_are_no_numbers(data, tmp_path):
    """Finite weights, but where a normed channel is above 1.13 its product with this one is beyond bf16 (3.39e38)."""
    model = random_model(tmp_path / "model")
    weights = tensors(model)
    weights["model.norm.weight"] = mx.full((128,), 3e38, mx.bfloat16)
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})
    arguments = ["--tasks", "piqa", "--data-dir", data, "--output-dir", tmp_path / "out"]
    refused(arguments, f"{model}: its log-likelihoods of piqa are not numbers", "too large for bfloat16", "download or convert it again", model=model)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", ["auto", "awq", "convert", "dwq", "dynamic_quant", "evaluate", "generate", "gptq", "perplexity", "report"])
def test_every_command_has_the_peers_name(command):
    """A link beside the built program, a script beside the installed one."""
    found = shutil.which(LQUANT)
    assert found, f"{LQUANT} is no program"
    assert f"lquant {command} --help" in run("--nonsense", program=f"{found}.{command}", code=2).stderr


def test_runs_as_the_peer_is_called(data, tmp_path):
    program = f"{shutil.which(LQUANT)}.evaluate"
    done = run("--model", TINY, "--tasks", "piqa", "--data-dir", data, "--limit", 1, "--output-dir", tmp_path, "--trust-remote-code", program=program)
    assert "piqa" in done.stdout
    assert json.loads((tmp_path / results_name(["piqa"])).read_text())["piqa"]["acc_stderr,none"] == "N/A"
