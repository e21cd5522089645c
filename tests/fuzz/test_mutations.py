"""A few hundred damaged inputs of all kinds, always the same (LQUANT_MUTATIONS for more of them): see mutate.py for what is asked of each."""

import os

from mutate import make_inputs, mutations

COUNT = int(os.environ.get("LQUANT_MUTATIONS", 400))


def test_damaged_inputs(tmp_path):
    found = [f"{number} {name}: {wrong}" for number, name, wrong, _ in mutations(make_inputs(tmp_path), tmp_path, 7, COUNT) if wrong]
    assert not found, "\n".join(found)
