"""Names on the disk may hold any bytes, spaces and quotes; a card names its folder and its command so that they can be used as they stand."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from mlx_lm.utils import load_model
from support import ENVIRONMENT, LQUANT, random_model, run, tensors, text_rows


def call(*arguments, cwd, code=0):
    """As support.run, for arguments that are bytes and output that may hold them."""
    command = [os.fsencode(a) if isinstance(a, (str, Path)) else a if isinstance(a, bytes) else str(a).encode() for a in (LQUANT, *arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == code, done.stderr
    assert b"json.exception" not in done.stderr
    return done


def spoken(card):
    """The commands that a card shows, as words."""
    return [shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", card, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def place(tmp_path):
    """A folder with a model, rows and a text whose names are no UTF-8."""
    folder = os.fsencode(tmp_path)
    os.rename(random_model(tmp_path / "m"), folder + b"/m\xff")
    os.rename(text_rows(tmp_path / "rows.jsonl", count=24, words=12), folder + b"/r\xfe.jsonl")
    (tmp_path / "text.txt").write_text("the river of stone and light " * 60)
    os.rename(tmp_path / "text.txt", folder + b"/t\xfe.txt")
    return tmp_path


ROWS = ["--data-path", b"r\xfe.jsonl"]
SOME = [*ROWS, "--num-samples", 8, "--sequence-length", 16]


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "-q"],
        ["dwq", *ROWS, "--num-samples", 8, "--num-valid", 2, "--batch-size", 2, "--max-seq-length", 16, "--target-dir", b"targets\xff", "--json"],
        ["gptq", *SOME, "--json"],
        ["awq", *SOME, "--n-grid", 2, "--json"],
        ["dynamic_quant", *SOME, "--target-bpw", 5, "--json"],
        ["auto", *SOME, "--target-bpw", 4.6, "--steps", "gptq", "--json"],
    ],
    ids=lambda a: a[0],
)
def test_any_bytes_in_names(arguments, place):
    call(*arguments, "--model", b"m\xff", "--mlx-path", b"o\xff", cwd=place)
    made = os.fsencode(place) + b"/o\xff"
    record = json.loads(Path(os.fsdecode(made + b"/lquant.json")).read_text(encoding="utf-8"))
    assert record["source"]["name"] == "m\ufffd"
    assert "# o\ufffd\n" in Path(os.fsdecode(made + b"/README.md")).read_text(encoding="utf-8")


def test_any_bytes_in_names_of_what_is_measured(place):
    call("convert", "--model", b"m\xff", "-q", "--mlx-path", b"o\xff", cwd=place)
    figures = ["--teacher", b"m\xff", "--data-path", b"t\xfe.txt", "--sequence-length", 16, "--num-samples", 4]
    call("perplexity", "--model", b"o\xff", *figures, "--record", "--json", cwd=place)
    call("report", b"o\xff", *figures, "--output", b"r\xff.html", cwd=place)
    tasks = Path(os.fsdecode(os.fsencode(place) + b"/tasks\xff")) / "boolq"
    tasks.mkdir(parents=True)
    row = dict(passage="the river is old .", question="is it old", label=1)
    (tasks / "validation.jsonl").write_text("\n".join(json.dumps(dict(row, idx=i)) for i in range(4)))
    call("evaluate", "--model", b"o\xff", "--compare", b"m\xff", "--tasks", "boolq", "--data-dir", b"tasks\xff", "--output-dir", b"e\xff", "--record", cwd=place)
    card = Path(os.fsdecode(os.fsencode(place) + b"/o\xff/README.md")).read_text(encoding="utf-8")
    assert "(t\ufffd.txt, " in card and "| boolq | 0 | 4 | acc |" in card and "the original" in card
    refused = call("upload", "--path", b"o\xff", "--upload-repo", "a/b", "--dry-run", cwd=place, code=1).stderr.decode()
    assert "not UTF-8" in refused


@pytest.mark.parametrize("name", ["it's a $model", "out/in a folder/", "-q"])
def test_a_cards_commands_work_as_they_stand(name, tmp_path):
    source = random_model(tmp_path / "the source's")
    run("convert", "--model", "the source's", "-q", "--q-bits", 3, "--mlx-path=" + name, cwd=tmp_path)
    folder = (tmp_path / name).resolve()
    card = (folder / "README.md").read_text()
    install, generate, made = spoken(card)
    assert card.split("---\n", 2)[2].strip().startswith(f"# {folder.name}\n")
    assert generate[:2] == ["mlx_lm.generate", "--model"] and (tmp_path / generate[2]).resolve() == folder and not generate[2].startswith("-")
    loaded = re.search(r"load\((.*)\)", card).group(1)
    load_model(tmp_path / json.loads(loaded))
    # The command makes the same model again.
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(source, again / "the source's")
    assert made[0] == "lquant"
    run(*made[1:], cwd=again)
    assert tensors(again / folder.name).keys() == tensors(folder).keys()
    assert (again / folder.name / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_mixed_model_is_not_called_by_one_width(tmp_path):
    source = random_model(tmp_path / "source")
    for recipe, tagged in (([], True), (["--quant-predicate", "mixed_2_6"], False)):
        folder = tmp_path / ("mixed" if recipe else "uniform")
        run("convert", "--model", source, "-q", *recipe, "--mlx-path", folder)
        for card in ((folder / "README.md").read_text(), run("upload", "--path", folder, "--upload-repo", "me/made", "--dry-run").stdout):
            assert ('- "4-bit"' in card) == tagged and "2-bit" not in card and "2bit" not in card
