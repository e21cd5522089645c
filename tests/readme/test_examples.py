"""The README's "One example a command", in order and in one folder, as a shell runs them: each ends with exit code 0.

The models and texts that the examples name are there under the same names, but tiny and random; the hub is one on this machine. Counts of rows,
tokens and steps are lowered by flags, for which see LOWERED; nothing else of a line is changed.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in ("tests", "tests/cli", "tests/hub"):
    sys.path.insert(0, str(ROOT / folder))
from gguf_files import write_gguf  # noqa: E402
from mock_hub import MockHub  # noqa: E402
from support import CHATML, ENVIRONMENT, LQUANT, chat_rows, run, sentences, text_rows  # noqa: E402
from tiny_models import family_folder  # noqa: E402

ROWS = {"--num-samples": 8, "--sequence-length": 32}
LOWERED = {
    "dwq": {"--num-samples": 8, "--num-valid": 4, "--batch-size": 4, "--max-seq-length": 32},
    "gptq": ROWS,
    "awq": ROWS,
    "auto": ROWS,
    "dynamic_quant": {"--num-samples": 16, "--sequence-length": 32},
    "perplexity": ROWS,
    "report": {**ROWS, "--layer-samples": 2},
    "evaluate": {},
    "generate": {"--max-tokens": 4},
    "demo": {"--model": "./SmolLM2-135M-Instruct"},
}


def examples():
    """The lines of the section's shell block, without comments."""
    section = re.search(r"^## One example a command\n(.*?)^## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL).group(1)
    block = re.search(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL).group(1)
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def lowered(line):
    """The line with its command's flags lowered: in their place where it has them, else at its end."""
    words = shlex.split(line)
    if "lquant" not in words:
        return line
    for flag, value in LOWERED.get(words[words.index("lquant") + 1], {}).items():
        if flag in words:
            words[words.index(flag) + 1] = str(value)
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def with_chat(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHATML}))
    return folder


def task_rows(folder):
    rows = {
        "arc_easy/test": dict(question="Where is the stone?", choices=dict(text=["in the river", "on the roof"], label=["A", "B"]), answerKey="A"),
        "hellaswag/validation": dict(activity_label="Reading", ctx_a="She opens a book.", ctx_b="she", endings=["reads.", "eats it.", "flies.", "is."], label="0"),
        "piqa/validation": dict(goal="warm room", sol1="light a fire", sol2="open the window", label=0),
        "winogrande/validation": dict(sentence="The bread was not in the bag since the _ was small.", option1="bag", option2="bread", answer="1"),
    }
    for name, row in rows.items():
        file = folder / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(3 * (json.dumps(row) + "\n"))


@pytest.fixture(scope="module")
def hub():
    with MockHub(user="your-name") as hub:
        yield hub


@pytest.fixture(scope="module")
def place(hub, tmp_path_factory):
    """The folder of somebody who has the models and texts that the examples speak of."""
    place = tmp_path_factory.mktemp("readme")
    small = dict(vocab_size=8192, num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1)
    with_chat(family_folder(place / "SmolLM2-135M-Instruct", "llama", stored=mx.bfloat16, **small))
    qwen = with_chat(family_folder(place / "Qwen3-0.6B", "qwen3", stored=mx.bfloat16, **small))
    write_gguf(qwen, place / "Qwen3-0.6B-Q8_0.gguf", kind="Q8_0")
    run("convert", "--model", qwen, "-q", "--mlx-path", place / "Qwen3-0.6B-4bit")
    chat_rows(place / "chat.jsonl", 80)
    for name in ("texts.txt", "wiki.txt"):
        (place / name).write_text("\n\n".join(sentences(60)))
    task_rows(place / "rows")
    (place / "ids.json").write_text("[[1, 2, 3], [4, 5, 6]]")

    hub.add_repo("model", "Qwen/Qwen3-0.6B", {file.name: file.read_bytes() for file in qwen.iterdir()})
    rows = text_rows(place / "hub.jsonl", 80)
    hub.add_repo("dataset", "allenai/tulu-3-sft-mixture", {"train.jsonl": rows.read_bytes()})

    (place / "bin").mkdir()
    (place / "bin" / "lquant").symlink_to(LQUANT)
    return place


def test_every_command_has_an_example():
    commands = re.findall(r"^  (\w+) ", run("help").stdout, re.MULTILINE)
    shown = {words[words.index("lquant") + 1] for words in map(shlex.split, examples()) if "lquant" in words}
    assert shown == set(commands)


# One after the other: later ones read what earlier ones have made.
@pytest.mark.parametrize("line", examples())
def test_an_example(place, hub, line):
    path = os.pathsep.join([str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**ENVIRONMENT, **hub.env(place / "home"), "PATH": path}
    done = subprocess.run(["bash", "-c", lowered(line)], cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{lowered(line)}\n{done.stdout}{done.stderr}"
    if output := re.search(r"--mlx-path (\S+)", line):
        assert (place / output.group(1) / "model.safetensors").exists()
