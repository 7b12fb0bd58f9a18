"""A training set that continues an earlier encoder: old values and buckets keep their indices, whatever the new log contains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.data.encoder import NULL, Encoder
from thinktwice.schema import LogSchema, parse_schema

LIMITS = st.sampled_from(["", ", min_count: 2", ", max_values: 2", ", min_count: 2, max_values: 3"])
words = st.lists(st.sampled_from([None, "a", "b", "c", "ü", "0", "1.5", "16777217", " x"]), max_size=6)
logs = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "u3", "u4", "17"]),
        st.sampled_from([None, "a", "b", "c", "d", ""]),
        st.one_of(st.none(), st.floats(-1e6, 1e6, allow_nan=False)),
        words,
    ),
    min_size=1,
    max_size=25,
)


def schema_with(limits: str) -> LogSchema:
    return parse_schema(
        f"""
        name: t
        time: {{column: ts}}
        entities: {{user: {{key: user_id}}}}
        fields: [{{name: group{limits}}}, {{name: price, kind: numeric, buckets: 4}}, {{name: tags, kind: list, length: 4}}]
        """,
        where="test",
    )


def table(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    columns = {"user_id": pl.String, "group": pl.String, "price": pl.Float64, "tags": pl.List(pl.String)}
    return pl.DataFrame(rows, schema=columns, orient="row")


@settings(max_examples=60, deadline=None)
@given(days=st.lists(logs, min_size=2, max_size=4), limits=st.lists(LIMITS, min_size=4, max_size=4))
def test_old_values_keep_their_indices_over_any_days(days: list[list[tuple[object, ...]]], limits: list[str]) -> None:
    before, seen = None, []
    for day, limit in zip(days, limits, strict=False):
        schema = schema_with(limit)
        seen += day
        encoder = Encoder.fit(table(day).to_arrow(), schema, before)
        if before is not None:
            assert encoder.continues(before)
            old, new = (one.encode_table(table(seen).to_arrow()) for one in (before, encoder))
            known = old.ids > 0
            np.testing.assert_array_equal(new.ids[known], old.ids[known])
            np.testing.assert_array_equal(new.ids[:, 2], old.ids[:, 2])  # buckets
            for name in ("user_id", "group", "tags"):
                values = encoder.values_of(name)
                assert values[: len(before.values_of(name))] == before.values_of(name) or NULL in encoder._values[name]
                assert len(set(values)) == len(values)
        unlimited = limit == ""
        if unlimited:
            assert (encoder.encode_table(table(day).to_arrow()).ids[:, :2] > 0).all()  # today's values have an index
        before = encoder


@pytest.mark.parametrize(("limits", "expected"), [("", "abcd"), (", min_count: 2", "abd"), (", max_values: 3", "abd")])
def test_limits_hold_for_new_values_alone(limits: str, expected: str) -> None:
    first = Encoder.fit(table([("u", "a", 1.0, []), ("u", "b", 2.0, [])]).to_arrow(), schema_with(""))
    day = [("u", word, 1.0, []) for word in "ddc"]
    grown = Encoder.fit(table(day).to_arrow(), schema_with(limits), first)
    assert sorted(grown.values_of("group")) == sorted(expected)
    cut = grown.cut.get("group")
    assert (cut is None) == (expected == "abcd")
    assert cut is None or (cut.kept, cut.cut, cut.share) == (3, 1, pytest.approx(1 / 3))


def test_another_encoder_does_not_continue(tmp_path: Path) -> None:
    one = Encoder.fit(table([("u", "a", 1.0, ["x"])]).to_arrow(), schema_with(""))
    other = Encoder.fit(table([("u", "b", 1.0, ["x"])]).to_arrow(), schema_with(""))
    assert not other.continues(one)
    one.save(tmp_path)
    assert Encoder.fit(table([("u", "b", 5.0, [])]).to_arrow(), schema_with(""), Encoder.load(tmp_path)).continues(one)
