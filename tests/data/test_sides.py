"""A request in two parts is the same batch as a request in whole rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.small import SCHEMA, training_rows
from thinktwice.data.encoded import Batch
from thinktwice.data.encoder import Encoder
from thinktwice.data.sides import Side, join

ENCODER = Encoder.fit(training_rows(200).to_arrow(), SCHEMA)
OWN = [f.name for f in ENCODER.fields if f.entity == "item"]
SHARED = [f.name for f in ENCODER.fields if f.entity != "item"]
WORDS = st.one_of(st.none(), st.sampled_from(["", "f", "m", "g1", "g4", "s0", "never", "7"]), st.integers(-3, 30))
NUMBERS = st.one_of(st.none(), st.floats(-1e9, 1e9), st.floats(0, 7))


def values(names: list[str]) -> st.SearchStrategy[dict[str, object]]:
    def one(name: str) -> st.SearchStrategy[object]:
        f = next(f for f in ENCODER.fields if f.name == name)
        if f.kind == "numeric":
            return NUMBERS
        if f.kind == "sequence":
            return st.one_of(st.none(), st.lists(st.sampled_from(["i1", "i2", "i59", "never"]), max_size=8))
        if f.kind == "vector":
            return st.one_of(st.none(), st.lists(st.floats(-1e3, 1e3), min_size=f.dim, max_size=f.dim), st.just([1.0]))
        return WORDS

    return st.fixed_dictionaries({}, optional={name: one(name) for name in names})


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.ids, b.ids)
        and a.sequences.keys() == b.sequences.keys()
        and all(torch.equal(a.sequences[n], b.sequences[n]) for n in a.sequences)
        and a.vectors.keys() == b.vectors.keys()
        and all(torch.equal(a.vectors[n].nan_to_num(7e7), b.vectors[n].nan_to_num(7e7)) for n in a.vectors)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shared=values(SHARED), own=st.lists(values(OWN), min_size=1, max_size=6))
def test_two_sides_are_whole_rows(shared: dict[str, object], own: list[dict[str, object]]) -> None:
    whole = ENCODER.encode_rows([{**shared, **row} for row in own])
    found = join(ENCODER.encode_side([shared], SHARED), ENCODER.encode_side(own, OWN))
    assert same(found, whole)


def test_rows_are_taken_repeated_and_stacked() -> None:
    rows = [{"item_id": f"i{i}", "genre": f"g{i % 5}", "cover": [float(i), 0.0, 1.0]} for i in range(6)]
    side = ENCODER.encode_side(rows, OWN)
    again = side.take(np.array([5, 0, 5]))
    expected = ENCODER.encode_side([rows[5], rows[0], rows[5]], OWN)
    np.testing.assert_array_equal(again.ids, expected.ids)
    np.testing.assert_array_equal(again.vectors["cover"], expected.vectors["cover"])
    both = Side.stacked([side, again])
    assert len(both) == 9
    np.testing.assert_array_equal(both.ids, np.concatenate([side.ids, expected.ids]))


def test_the_shared_side_is_one_row() -> None:
    two = ENCODER.encode_side([{}, {}], SHARED)
    with pytest.raises(ValueError, match="one row, not 2"):
        join(two, ENCODER.encode_side([{}], OWN))
