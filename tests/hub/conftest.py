"""A hub of its own for each test."""

import pytest
from mock_hub import MockHub


@pytest.fixture
def hub():
    with MockHub() as hub:
        yield hub
