"""`lquant report`: the page is sound HTML that loads nothing, its numbers are --json's, its figures say what they show, and what it reads stays text."""

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import mlx.core as mx
import pytest
from support import ENVIRONMENT, LQUANT, TINY, reseal, run, sentences, tree

VOID = {"meta", "br", "link", "img", "input", "hr"}
SIZES = ("--sequence-length", 32, "--num-samples", 6, "--batch-size", 4)


class Page(HTMLParser):
    """Every element with its attributes and text; fails for tags that do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.balanced = [], [], True
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        element = dict(tag=tag, attributes=dict(attributes), text="", parents=[e["tag"] for e in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [e for e in self.elements if e["tag"] == tag]

    def ids(self):
        return [e["attributes"]["id"] for e in self.elements if "id" in e["attributes"]]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(sentences(80)) + "\n<script>alert('text')</script>\n")
    return file


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("folders")
    for bits in (4, 2):
        run("convert", "--model", TINY, "-q", "--q-bits", bits, "--mlx-path", place / f"tiny-{bits}bit")
    return [place / "tiny-4bit", place / "tiny-2bit"]


@pytest.fixture(scope="module")
def made(folders, text, tmp_path_factory):
    """The page and --json's data of one run over both folders."""
    output = tmp_path_factory.mktemp("report") / "report.html"
    done = run("report", *folders, "--teacher", TINY, "--data-path", text, *SIZES, "--layer-samples", 2, "--output", output, "--json")
    assert [p.name for p in output.parent.iterdir()] == ["report.html"]
    return output.read_text(encoding="utf-8"), json.loads(done.stdout)


def numbers_of(page):
    return {float(e["attributes"]["value"]) for e in page.all("data")}


def test_the_page_is_sound(made):
    page = Page(made[0])
    assert page.balanced and not page.open
    assert len(page.ids()) == len(set(page.ids()))
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) - len(page.all("svg")) - count_hints(page) == 1
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    for link in page.all("a"):
        assert link["attributes"]["href"][0] == "#" and link["attributes"]["href"][1:] in page.ids()
    for named in page.elements:
        for name in named["attributes"].get("aria-labelledby", "").split():
            assert name in page.ids()


def count_hints(page):
    """Tool tips: titles inside of a figure, beside the figure's own."""
    return sum("svg" in e["parents"] and not e["attributes"].get("id") for e in page.all("title"))


def test_nothing_is_loaded_and_nothing_runs(made):
    page = Page(made[0])
    assert not page.all("script") and not page.all("link") and not page.all("iframe") and not page.all("img")
    for element in page.elements:
        for name, value in element["attributes"].items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action")
            if name != "xmlns":
                assert "://" not in (value or "") and not (value or "").lower().startswith("javascript:")
    assert "url(" not in made[0] and "@import" not in made[0]
    policy = [e["attributes"]["content"] for e in page.all("meta") if e["attributes"].get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'")


def luminance(colour):
    """Of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_ink_can_be_read_on_its_ground(made):
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part)) for part in made[0].split("</style>")[0].split("prefers-color-scheme: dark"))
    assert len(light) > 30 and light.keys() == dark.keys()
    for colours in (light, dark):
        pairs = [("ground", name) for name in ("ink", "quiet", "accent")] + [("mark", "ink"), ("panel", "ink")]
        pairs += [(name, name + "i") for name in colours if name + "i" in colours]
        for ground, ink in pairs:
            high, low = sorted((luminance(colours[ground]), luminance(colours[ink])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)


def test_every_figure_has_a_text_and_a_table(made):
    page = Page(made[0])
    figures = page.all("svg")
    assert len(figures) == 1 + 2 * 3  # the curve; of each folder tokens, sizes, replaced alone
    by_id = {e["attributes"]["id"]: e for e in page.elements if "id" in e["attributes"]}
    for svg in figures:
        names = svg["attributes"]["aria-labelledby"].split()
        assert [by_id[n]["tag"] for n in names] == ["title", "desc"] and all(by_id[n]["text"].strip() for n in names)
        # What can be focused is not hidden in a picture.
        assert svg["attributes"]["role"] in ("img", "group")
    focusable = [e["attributes"] for e in page.elements if e["attributes"].get("tabindex") == "0"]
    assert all(a["aria-label"] and a["role"] in ("img", "group") for a in focusable)
    assert len([a for a in focusable if a["class"] == "point"]) == 2 + 2 * 4
    # What is wider than the page scrolls, and a keyboard must reach it.
    assert len([a for a in focusable if a["class"] == "scroll"]) == len(page.all("table")) + len(figures)
    tables = [e for e in page.all("table") if "figure" in e["parents"]]
    assert len(tables) == len(figures) and all("details" in e["parents"] for e in tables)
    assert all(e["attributes"]["scope"] in ("col", "row") for e in page.all("th"))


def test_numbers_are_those_of_the_json(made):
    html, data = made
    numbers = numbers_of(Page(html))
    for folder in data["folders"]:
        quality = folder["quality"]
        wanted = [folder["bytes"], folder["bits_per_weight"], quality["perplexity"], quality["kl"], quality["kl_se"], quality["top1_agreement"]]
        wanted += folder["kl_distribution"]["counts"] + [folder["kl_distribution"]["below"]]
        wanted += [linear["bytes"] for linear in folder["linears"]]
        wanted += [value for figure in folder["alone"] for value in (figure["kl"], figure["kl_se"])]
        wanted += [p["probability"] for w in folder["worst"] for p in w["teacher"] + w["student"]]
        assert set(map(float, wanted)) <= numbers
        assert sum(folder["kl_distribution"]["counts"]) + folder["kl_distribution"]["below"] == quality["tokens"]


def test_figures_are_perplexitys(made, folders, text):
    for folder, found in zip(folders, made[1]["folders"]):
        done = run("perplexity", "--model", folder, "--teacher", TINY, "--data-path", text, *SIZES, "--json")
        for name, value in json.loads(done.stdout).items():
            assert found["quality"][name] == pytest.approx(value, rel=1e-6), name
        worst = [w["kl"] for w in found["worst"]]
        assert len(worst) == 20 and worst == sorted(worst, reverse=True)
        assert worst[0] == pytest.approx(found["kl_distribution"]["max"])
        for w in found["worst"]:
            for side in ("teacher", "student"):
                same = [p["probability"] for p in w[side] if p["token"] == w["token"]]
                assert not same or any(p == pytest.approx(w[side + "_probability"], rel=0.02) for p in same)


def test_replaced_alone_is_a_model_with_one_packed_linear(made, folders, text, tmp_path):
    """What stands for one linear is the divergence of a folder in which only that one is packed."""
    data = made[1]
    path = "model.layers.1.mlp.down_proj"
    block = {linear["path"]: False for linear in data["folders"][1]["linears"]}
    block[path] = {"bits": 2, "group_size": 64}
    (tmp_path / "plan.json").write_text(json.dumps(block))
    run("convert", "--model", TINY, "-q", "--plan", tmp_path / "plan.json", "--mlx-path", tmp_path / "one")
    sizes = ("--sequence-length", 32, "--num-samples", 2, "--batch-size", 4)
    found = json.loads(run("perplexity", "--model", tmp_path / "one", "--teacher", TINY, "--data-path", text, *sizes, "--json").stdout)
    alone = {figure["name"]: figure for figure in data["folders"][1]["alone"]}
    assert set(alone) == {linear["path"] for linear in data["folders"][1]["linears"] if "bits" in linear}
    assert alone[path]["kl"] == pytest.approx(found["kl"], rel=1e-4)
    assert alone[path]["kl_se"] == pytest.approx(found["kl_se"], rel=1e-4)


def test_one_row_has_no_error(folders, text, tmp_path):
    """What is not known is not zero: it is left out of texts and of the page, and null in JSON."""
    one = ("--teacher", TINY, "--data-path", text, "--sequence-length", 32, "--num-samples", 1)
    said = run("perplexity", "--model", folders[1], *one).stdout
    assert re.fullmatch(r"tokens      32\nperplexity  [\d.]+\nteacher     [\d.]+\nKL          [\d.]+ nats/token\nKL p99      [\d.]+\nsame top-1  [\d.]+ %\n", said)
    found = json.loads(run("perplexity", "--model", folders[1], *one, "--json").stdout)
    assert found["kl"] > 0 and all(found[name] is None for name in ("nll_se", "perplexity_se", "kl_se"))
    page = ("report", *folders, *one, "--layers", "block", "--output")
    table = run(*page, tmp_path / "one.html").stdout
    assert "±" not in table and "nan" not in table
    lines = table.splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("KL p99", *(re.split("  +", line)[5] for line in lines[1:3])))}) == 1
    html = (tmp_path / "one.html").read_text()
    assert "±" not in html and not re.search(r"\bnan\b", html) and 'class="error"' not in html
    for folder in json.loads(run(*page, tmp_path / "two.html", "--json").stdout)["folders"]:
        assert folder["quality"]["kl_se"] is None and all(a["kl"] > 0 and a["kl_se"] is None for a in folder["alone"])


def test_awqs_scales_are_taken_out(folders, text, tmp_path):
    """In a folder of awq a linear alone costs about what it costs without scales, not what a scaled weight in an unscaled model would."""
    run("awq", "--model", TINY, "--bits", 4, "--data-path", text, "--num-samples", 16, "--sequence-length", 32, "--mlx-path", tmp_path / "awq")
    assert (tmp_path / "awq" / "scales.awq").exists()
    done = run("report", tmp_path / "awq", folders[0], "--teacher", TINY, "--data-path", text, *SIZES, "--output", tmp_path / "r.html", "--json")
    scaled, plain = ({a["name"]: a["kl"] for a in f["alone"] if a["block"] >= 0} for f in json.loads(done.stdout)["folders"])
    assert set(scaled) == set(plain)
    assert sum(scaled.values()) < 1.5 * sum(plain.values())


def test_blocks_and_none(folders, text, tmp_path):
    common = ("report", folders[1], "--teacher", TINY, "--data-path", text, *SIZES, "--json", "--output")
    data = json.loads(run(*common, tmp_path / "b.html", "--layers", "block").stdout)["folders"][0]
    blocks = {linear["block"] for linear in data["linears"]} - {-1}
    assert {a["name"] for a in data["alone"] if a["role"] == "block"} == {f"block {b}" for b in blocks}
    assert all(a["kl"] > 0 for a in data["alone"])
    assert Page((tmp_path / "b.html").read_text()).balanced
    data = json.loads(run(*common, tmp_path / "n.html", "--layers", "none").stdout)["folders"][0]
    assert data["alone"] == [] and "replaced alone" not in (tmp_path / "n.html").read_text()


def test_perplexity_writes_a_page(folders, text, tmp_path):
    common = ("perplexity", "--model", folders[1], "--teacher", TINY, "--data-path", text, *SIZES, "--json")
    plain, with_page = json.loads(run(*common).stdout), json.loads(run(*common, "--report", tmp_path / "p.html").stdout)
    assert with_page == {name: pytest.approx(value, rel=1e-6) for name, value in plain.items()}
    assert any(n == pytest.approx(plain["kl"], rel=1e-6) for n in numbers_of(Page((tmp_path / "p.html").read_text())))


def test_table_is_plain_in_a_pipe(folders, text, tmp_path):
    done = run("report", *folders, "--teacher", TINY, "--data-path", text, *SIZES, "--layers", "none", "--output", tmp_path / "r.html")
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout and len(lines) == 4
    assert [line.split()[0] for line in lines] == ["folder", "tiny-4bit", "tiny-2bit", "tiny"]


def test_hostile_folders_stay_text(folders, text, tmp_path):
    """Names, records and tokens are an attacker's; the page that shows them has no element of theirs."""
    attack = "<img src=x onerror=alert(1)>\"'&\u202e\x1b[31m{{body}}"
    hostile = tmp_path / attack.replace("/", "")
    shutil.copytree(folders[1], hostile)
    teacher = tmp_path / "teacher"
    shutil.copytree(TINY, teacher)
    record = json.loads((hostile / "lquant.json").read_text())
    record.update({attack: [attack], "command": attack, "options": {attack: {attack: attack}}, "quality": {"steps": [{attack: attack, "kl": attack}]}})
    (hostile / "lquant.json").write_text(json.dumps(record))
    # The texts of all tokens that end a word become markup.
    for folder in (hostile, teacher):
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["decoder"] = {
            "type": "Sequence",
            "decoders": [tokenizer["decoder"], {"type": "Replace", "pattern": {"String": "e"}, "content": "</bdi><script>alert(2)</script>"}],
        }
        file.write_text(json.dumps(tokenizer))
    output = tmp_path / "r.html"
    done = run("report", hostile, "--teacher", teacher, "--data-path", text, *SIZES, "--layers", "none", "--output", output)
    assert "\x1b" not in done.stdout
    html = output.read_text(encoding="utf-8")
    page = Page(html)
    assert page.balanced and not page.all("script") and not page.all("img")
    assert not any(name.startswith("on") for e in page.elements for name in e["attributes"])
    assert "&lt;script&gt;alert(2)" in html and "&lt;img src=x" in html and "\x1b" not in html


@pytest.mark.parametrize("record", ["{", "[1]", "[" * 100000, '{"a":' * 1000 + "1" + "}" * 1000, "null", '{"quality": [3], "options": null, "data": "x"}'])
def test_a_record_of_any_kind_is_no_error(folders, text, tmp_path, record):
    folder = tmp_path / "model"
    shutil.copytree(folders[1], folder)
    (folder / "lquant.json").write_text(record)
    run("report", folder, "--teacher", TINY, "--data-path", text, *SIZES, "--layers", "none", "--output", tmp_path / "r.html")
    assert Page((tmp_path / "r.html").read_text()).balanced


def refused(folder, arguments, *parts, code=1):
    before = tree(folder)
    done = run(*arguments, code=code)
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1 and lines[0].startswith("lquant: ") and all(str(part) in lines[0] for part in parts), done.stderr
    assert done.stdout == "" and tree(folder) == before


def test_bad_input_is_one_sentence(folders, text, tmp_path):
    output = tmp_path / "r.html"
    common = ("--data-path", text, "--output", output, *SIZES)
    refused(tmp_path, ("report", folders[0], *common), "--teacher", code=2)
    refused(tmp_path, ("report", "--teacher", TINY, *common), "folders", code=2)
    refused(tmp_path, ("report", tmp_path / "none", "--teacher", TINY, *common), tmp_path / "none")
    refused(tmp_path, ("report", folders[0], "--teacher", TINY, *common, "--layers", "half"), "--layers", code=2)
    refused(tmp_path, ("report", folders[0], "--teacher", TINY, *common, "--layer-samples", 0), "--layer-samples", code=2)
    refused(tmp_path, ("report", folders[0], "--teacher", TINY, "--data-path", tmp_path / "x.txt", "--output", output), "x.txt")
    refused(tmp_path, ("report", folders[0], "--teacher", TINY, *common[:2], "--output", tmp_path / "no" / "r.html"), tmp_path / "no")
    refused(tmp_path, ("report", folders[0], "--teacher", TINY, *common[:2], "--output", tmp_path), "is a folder")
    refused(tmp_path, ("perplexity", "--model", folders[0], *common[:2], "--report", output), "--teacher", code=2)
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    config = json.loads((other / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (other / "config.json").write_text(json.dumps(config))
    whole, last = mx.load(str(other / "model.safetensors")), f"model.layers.{config['num_hidden_layers']}."
    mx.save_safetensors(str(other / "model.safetensors"), {n: t for n, t in whole.items() if not n.startswith(last)}, metadata={"format": "mlx"})
    refused(tmp_path, ("report", folders[0], "--teacher", other, *common), "not those of the teacher")
    shutil.copy(TINY / "model.safetensors", other)
    shutil.copy(TINY / "config.json", other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + " ")
    refused(tmp_path, ("report", folders[0], "--teacher", other, *common), "tokenizer.json")


def test_an_output_is_kept_unless_told(folders, text, tmp_path):
    output = tmp_path / "r.html"
    output.write_text("mine")
    common = ("report", folders[0], "--teacher", TINY, "--data-path", text, *SIZES, "--layers", "none", "--output", output)
    refused(tmp_path, common, "exists already", "--overwrite")
    run(*common, "--overwrite")
    assert Page(output.read_text()).balanced


def killed_report(arguments, output, least):
    """A run that is killed when it has measured so many parts alone; the units that it leaves."""
    process = subprocess.Popen([str(a) for a in (LQUANT, *arguments, output)], env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    units = lambda: sorted(output.with_name(output.name + ".lquant-run").glob("alone-*.safetensors"))
    while process.poll() is None and len(units()) < least:
        time.sleep(0.001)
    process.kill()
    process.wait()
    return units()


def test_a_killed_run_goes_on(folders, text, tmp_path):
    output = tmp_path / "r.html"
    common = ["report", *folders, "--teacher", TINY, "--data-path", text, *SIZES, "--output"]
    run(*common, tmp_path / "whole.html")
    units = killed_report(common, output, 5)
    assert not output.exists() and len(units) >= 5
    refused(tmp_path, (*common, output, "--layers", "block"), "--fresh")
    assert "continuing" in run(*common, output).stderr
    assert output.read_bytes() == (tmp_path / "whole.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "whole.html"]


def test_a_run_of_one_row_goes_on(folders, text, tmp_path):
    """Errors that are not known are null in units. Units of an earlier version have 0 there: they are measured again."""
    output = tmp_path / "r.html"
    common = ["report", *folders, "--teacher", TINY, "--data-path", text, "--sequence-length", 32, "--num-samples", 1, "--output"]
    run(*common, tmp_path / "whole.html")
    units = killed_report(common, output, 2)
    assert not output.exists()
    reseal(units[0], {"kl": 9.0, "kl_se": 0.0})
    assert "continuing" in run(*common, output).stderr
    assert output.read_bytes() == (tmp_path / "whole.html").read_bytes()
