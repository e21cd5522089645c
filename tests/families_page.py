"""docs/families.md: which model types the program knows and what the tests ran on each.

Tests tell what they have shown by the fixture `ran`; `make families` (pytest --families-page) gathers it and writes the page, and the number in the
README. tests/families_test.py holds the committed page to the program and to the tests' own lists.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import families
import tiny_models
from mlx_lm.utils import MODEL_REMAPPING

sys.path.append(str(Path(__file__).parent / "model"))
from test_fixtures import FIXTURES, RUNS  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
README = ROOT / "README.md"
COUNT = re.compile(r"\[(\d+) model types\]\(docs/families\.md\)")

# Every column of what was run, with the rows of families.FAMILIES on which the tests run it: {column: names}; for
# "transformers" it is folders of tests/model/fixtures.
EXPECTED = {
    "logits f32": list(families.FAMILIES),
    "logits bf16": [name for name in families.FIRST if families.model_type(name) not in families.FLOAT32_ALONE]
    + ["llama-yarn", "phi3-partial-longrope"],
    "transformers": sorted(RUNS),
    "generate": families.FIRST,
    "perplexity": families.FIRST,
    "convert": list(families.FAMILIES),
    "awq": list(families.REPRESENTATIVES),
    "gptq": list(families.REPRESENTATIVES),
    "dwq": list(families.REPRESENTATIVES),
    "dynamic_quant": list(families.REPRESENTATIVES),
}
MARKS = [column for column in EXPECTED if not column.startswith("logits")]

TEXT = """# Model families

The values of `model_type` in `config.json` that lquant knows, and what its tests run on each: small models of random weights, made by mlx_lm's own code in every
configuration that the table names (`tests/families.py`). `make families` runs these tests and writes this page.

- **f32**: the largest difference between a logit of `lquant logits` and mlx_lm's, as a part of the logits' range, over all configurations; rounded up to a power of ten, at least 1e-6. The tests allow 1e-4.
- **bf16**: the root mean square of the logits' error in bf16 against mlx_lm's in f32, as a part of the range, for one configuration or two; rounded up likewise, at least 1e-2. The tests allow 1.5 times the error of mlx_lm's own
  bf16. "f32 alone": MLX has no mixtures of experts in 16 bits on a CPU, so there is nothing to compare with.
- **transformers**: a checkpoint that transformers itself wrote (`tests/model/fixtures`), with mlx_lm's logits as well.
- **generate**: with a cache, token by token, the text that mlx_lm generates. **perplexity**: the mean of mlx_lm's log-probabilities. **convert**: `lquant convert -q` writes mlx_lm's tensors bit for bit, with its mixed recipes too.
- **awq**, **gptq**, **dwq**, **dynamic_quant**: a run on the type itself; for the first three, the logits are nearer to the original's than those of plain rounding to the same formats.

The methods work on every type. They know ops and the edges between them, not families, so they are run on one representative of each op and topology:

{representatives}

{count} model types:

{table}
"""


def known_model_types():
    """As `lquant families` lists them."""
    done = subprocess.run([str(tiny_models.LQUANT), "families"], capture_output=True, text=True, env=tiny_models.ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# The least that is told. What f32 sums of some hundred products, and bf16's own rounding (2^-8), leave is a part of this that depends on the machine.
LEAST = {"logits f32": 1e-6, "logits bf16": 1e-2}


def power_of_ten(column, figure):
    """The smallest power of ten that is no less: 3e-6 is told as 1e-5, on any machine alike."""
    return f"1e{math.ceil(math.log10(max(figure, LEAST[column])) - 1e-9)}"


def type_of(column, name):
    """The model type of a row of FAMILIES or, in the column "transformers", of a fixture."""
    return json.loads((FIXTURES / name / "config.json").read_text())["model_type"] if column == "transformers" else families.model_type(name)


def types():
    """All that the tests know: {model type: rows of FAMILIES}, none where a fixture of transformers is all there is."""
    rows = families.by_model_type()
    return {kind: rows.get(kind, []) for kind in sorted(rows.keys() | {type_of("transformers", name) for name in RUNS})}


def cell(column, kind, figure):
    """What stands in a column of a type: a figure, a mark where the tests run it, or a dash."""
    if column == "logits bf16" and kind in families.FLOAT32_ALONE:
        return "f32 alone"
    ran = any(type_of(column, name) == kind for name in EXPECTED[column])
    if column.startswith("logits"):
        return figure or ("not run" if ran else "–")
    return "✓" if ran else "–"


def note(kind):
    shared = f"as `{MODEL_REMAPPING[kind]}`, in mlx_lm too" if kind in MODEL_REMAPPING else ""
    return "; ".join(text for text in (shared, families.NOTES.get(kind, "")) if text)


def render(figures):
    """The page; figures: {(column, model type): what stands there} for the columns that have figures."""
    lines = ["| " + " | ".join(("model_type", "configurations", "f32", "bf16", *MARKS, "notes")) + " |", "| " + "--- | " * (5 + len(MARKS))]
    for kind, names in types().items():
        cells = [cell(column, kind, figures.get((column, kind))) for column in EXPECTED]
        lines.append("| " + " | ".join((f"`{kind}`", ", ".join(names) or "–", *cells, note(kind))) + " |")
    stand = [f"- `{families.model_type(name)}` ({name}): {what}" for name, what in families.REPRESENTATIVES.items()]
    return TEXT.format(representatives="\n".join(stand), count=len(types()), table="\n".join(line.rstrip() for line in lines))


def figures_of(page):
    """What render() was given, read back from a page: {(column, model type): text}."""
    found = {}
    for line in page.splitlines():
        if match := re.match(r"\| `(\w[\w.-]*)` \|", line):
            cells = [text.strip() for text in line.strip("|").split("|")]
            found |= {(column, match.group(1)): text for column, text in zip(EXPECTED, cells[2:]) if re.fullmatch(r"1e-\d+", text)}
    return found


def write(records):
    """Writes the page and the README's number; records: (column, name, figure or None) of each test that passed. Returns what is missing, for a page is
    written of a whole run alone."""
    missing = {(column, name) for column, names in EXPECTED.items() for name in names} - {(column, name) for column, name, _ in records}
    if missing:
        return missing
    largest = {}
    for column, name, figure in records:
        if figure is not None:
            key = "logits f32" if column == "transformers" else column, type_of(column, name)
            largest[key] = max(figure, largest.get(key, 0.0))
    PAGE.write_text(render({key: power_of_ten(key[0], figure) for key, figure in largest.items()}), encoding="utf-8")
    count = len(types())
    README.write_text(COUNT.sub(f"[{count} model types](docs/families.md)", README.read_text(encoding="utf-8")), encoding="utf-8")
    return missing
