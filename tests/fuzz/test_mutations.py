"""Damaged inputs of every kind (mutate.py), a few hundred of them; `make fuzz-mutations` takes thousands."""

import os

import mutate

COUNT = int(os.environ.get("LQUANT_MUTATIONS", "252"))  # a dozen of each kind


def test_damaged_inputs_are_refused_in_a_sentence(tmp_path):
    wrong = [f"{number} {name}: {said}" for number, name, said, _ in mutate.mutations(mutate.make_inputs(tmp_path), tmp_path, 7, COUNT) if said]
    assert not wrong, "\n".join(wrong)
