"""A small random model and rows of text, for the test files that make none of their own."""

import pytest
from support import random_model, text_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("source") / "small")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return text_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", count=96)
