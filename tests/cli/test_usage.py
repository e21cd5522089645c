"""What the program says of its own use."""

import re

import pytest
from support import run

COMMANDS = "dwq gptq awq auto dynamic_quant convert perplexity report evaluate generate logits families upload demo".split()


def test_help_is_asked_for_in_three_ways():
    said = run("dwq", "--help").stdout
    assert "\nUsage: lquant dwq [OPTIONS]\n" in said
    assert run("help", "dwq").stdout == run("dwq", "-h").stdout == said


def test_the_overview_has_a_line_a_command():
    said = run("help").stdout
    assert said == run("--help").stdout == run(code=2).stderr
    assert "\nUsage: lquant COMMAND [OPTIONS]\n" in said
    assert re.findall(r"^  (\w+) ", said, re.MULTILINE) == COMMANDS
    assert all(len(line) <= 120 for line in said.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_names_the_program_and_the_model(command):
    said = run(command, "--help").stdout
    assert re.search(rf"^Usage: lquant {command} ", said, re.MULTILINE)
    short = re.search(r"^  -m,(--[\w-]+)", said, re.MULTILINE)
    # -m is what it is in mlx_lm, whose generate alone has it for something else; upload and report ask for folders by other names.
    expected = {"generate": "--max-tokens", "upload": None, "report": None, "families": None, "convert": "--hf-path"}.get(command, "--model")
    assert (short and short.group(1)) == expected
    if command == "generate":
        assert "-m is this here, as in mlx_lm, and elsewhere the model" in said


def test_names_that_are_not_known():
    for arguments, sentence in (
        (["dqw"], "there is no command dqw; did you mean dwq? (commands: dwq, gptq, "),
        (["help", "dqw"], "there is no command dqw; did you mean dwq? (commands: dwq, gptq, "),
        (["mmlu", "--help"], "there is no command mmlu (commands: dwq, gptq, "),
        (["--modle", "x", "dwq"], "there is no option --modle before a command (commands: dwq, gptq, "),
        (["dwq", "--modle", "x"], "dwq has no option --modle; did you mean --model? (lquant dwq --help lists all)\n"),
        (["dynamic-quant", "--modle", "x"], "dynamic_quant has no option --modle; did you mean --model? (lquant dynamic_quant --help lists all)\n"),
        (["dwq", "--model", "x", "--bit", "3"], "dwq has no option --bit; did you mean --bits? (lquant dwq --help lists all)\n"),
        (["gptq", "--model", "x", "--bit=3"], "gptq has no option --bit; did you mean --bits? (lquant gptq --help lists all)\n"),
        (["dwq", "--model", "x", "3"], "3: belongs to no option of dwq; see lquant dwq --help\n"),
        (["dwq", "--model", "--bits", "3"], "--model has no value, for --bits comes right behind it; see lquant dwq --help\n"),
        (["dwq", "--bits", "3"], "--model is required; see lquant dwq --help\n"),
    ):
        done = run(*arguments, code=2)
        assert done.stderr.startswith("lquant: " + sentence) and done.stderr.count("\n") == 1 and done.stdout == "", done.stderr
