"""A truth value is read alike in a log, a request and Python, whatever its type and spelling."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.protocol.requests import RequestParser
from thinktwice.errors import ThinktwiceError
from thinktwice.schema import parse_schema
from thinktwice.schema.numbers import missing
from thinktwice.schema.truth import TRUTH_WORDS, truth, truths
from thinktwice.validate.parse import read_columns
from thinktwice.validate.rules import row_rules

SCHEMA = parse_schema("name: s\ntime: {format: order}\nfields: [{name: flag, kind: boolean}]", where="s")
WORDS = st.sampled_from(sorted(TRUTH_WORDS))
SPELLED = st.builds(
    lambda word, upper, around: f"{around}{word.upper() if upper else word.title()}{around}",
    WORDS,
    st.booleans(),
    st.sampled_from(["", " ", "\t"]),
)
VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (pa.string(), SPELLED | WORDS | st.text(max_size=4)),
    "bytes": (pa.binary(), WORDS.map(str.encode) | st.binary(max_size=3)),
    "bool": (pa.bool_(), st.booleans()),
    "int": (pa.int64(), st.integers(-2, 3)),
    "uint8": (pa.uint8(), st.integers(0, 3)),
    "float64": (pa.float64(), st.sampled_from([0.0, -0.0, 1.0, 0.5, 2.0, float("nan"), float("inf")])),
    "float32": (pa.float32(), st.sampled_from([0.0, 1.0, 0.5])),
    "decimal": (pa.decimal128(5, 2), st.sampled_from([Decimal("1.00"), Decimal("0.00"), Decimal("0.50")])),
}


@pytest.mark.parametrize("name", VALUES)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_arrays_single_values_and_requests_agree(name: str, data: st.DataObject) -> None:
    kind, values = VALUES[name]
    value = data.draw(values | st.none())
    read = truths(pa.array([value], kind))[0]
    try:
        single, refused = truth(np.float32(value) if name == "float32" and value is not None else value), False
    except ValueError:
        single, refused = None, True
    assert single == read
    # Neither read nor missing is what a log quarantines and a request refuses.
    assert refused == (read is None and not missing(pa.array([value], kind))[0])
    try:
        (row,) = RequestParser(SCHEMA, online=False).parse({"rows": [{"flag": value}]}, "r").rows or ()
        asked = row["flag"] or None
    except ThinktwiceError as error:
        assert refused and "must be true or false" in str(error)
    else:
        assert not refused and asked == read


def test_other_values_break_the_rule_of_the_field() -> None:
    rows = pa.record_batch(
        {"row_id": ["a", "b", "c"], "source_row": [0, 1, 2], "flag": ["Yes", "perhaps", ""], "label": ["1", "0", "1"]}
    )
    (rule,) = [rule for rule in row_rules(SCHEMA) if rule.column == "flag"]
    from thinktwice.validate.parse import broken, canonical, violations

    read = read_columns(SCHEMA, rows)
    assert read.select(violations((rule,), as_of=None))[broken(rule)].to_list() == [False, True, False]
    assert canonical(SCHEMA, read)["flag"].to_list() == ["true", None, None]
    assert rule.id == "flag:boolean" and "make the field categorical" in rule.fix


@pytest.mark.parametrize("key", ["allowed: [yes]", "min_count: 2", "max_values: 1", "minimum: 0", "separator: ';'"])
def test_keys_that_do_not_fit_a_boolean_are_named(key: str) -> None:
    with pytest.raises(ThinktwiceError, match="flag"):
        parse_schema(f"name: s\ntime: {{format: order}}\nfields: [{{name: flag, kind: boolean, {key}}}]", where="s")
