"""docs/families.md against the program, the tests' lists and the README: `make families` writes it anew."""

import json

import families
import families_page
import pytest

AGAIN = "docs/families.md is not up to date: run make families"


@pytest.fixture(scope="module")
def page():
    return families_page.PAGE.read_text(encoding="utf-8")


def test_every_type_that_the_program_knows_has_a_row_in_the_tests():
    assert sorted(families_page.types()) == families_page.known_model_types()


def test_the_page_is_what_the_lists_say(page):
    """All of it but the figures, which are bounds of what a run measured."""
    assert page == families_page.render(families_page.figures_of(page)), AGAIN


def test_the_figures_are_within_what_the_tests_allow(page):
    figures = families_page.figures_of(page)
    assert {kind for column, kind in figures if column == "logits f32"} == set(families_page.types()), AGAIN
    assert {kind for column, kind in figures if column == "logits bf16"} == set(families.by_model_type()) - families.FLOAT32_ALONE, AGAIN
    assert all(float(figure) <= 1e-4 for (column, _), figure in figures.items() if column == "logits f32")


def test_the_readme_says_how_many():
    counts = families_page.COUNT.findall(families_page.README.read_text(encoding="utf-8"))
    assert counts and set(counts) == {str(len(families_page.types()))}, AGAIN


def test_lists_name_what_there_is():
    assert families.REPRESENTATIVES.keys() <= families.FAMILIES.keys()
    assert families.FLOAT32_ALONE | families.NOTES.keys() <= families_page.types().keys()


def test_a_page_of_a_part_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(families_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(families_page, "README", tmp_path / "readme.md")
    assert ("gptq", "llama") in families_page.write([("awq", "llama", None)])
    assert not list(tmp_path.iterdir())


def test_a_page_of_a_whole_run_holds_its_largest_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(families_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(families_page, "README", tmp_path / "readme.md")
    (tmp_path / "readme.md").write_text("[0 model types](docs/families.md)")
    figure = {"logits f32": 3e-7, "logits bf16": 0.02, "transformers": 2e-8}
    records = [(column, name, figure.get(column)) for column, names in families_page.EXPECTED.items() for name in names]
    assert not families_page.write(json.loads(json.dumps(records)) + [("logits f32", "llama-yarn", 4e-5)])
    figures = families_page.figures_of((tmp_path / "page.md").read_text(encoding="utf-8"))
    assert figures["logits f32", "llama"] == "1e-4" and figures["logits f32", "qwen2"] == "1e-6" and figures["logits bf16", "qwen2"] == "1e-1"
    assert (tmp_path / "readme.md").read_text() == f"[{len(families_page.types())} model types](docs/families.md)"
