"""The encoder: the table path and the request path agree, unknown values are index 0, ids are never rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.data.encoded import EncodedRows, count_values, table_offsets
from thinktwice.data.encoder import Encoder, canonical, hash_user
from thinktwice.errors import BundleError, DataError
from thinktwice.schema import LogSchema, parse_schema

SCHEMA = parse_schema(
    """
name: t
time: {column: ts}
entities: {user: {key: user_id}, item: {key: item_id}}
fields: [{name: price, kind: numeric, entity: item, buckets: 4}, {name: group, entity: user}]
sequences: [{name: recent, of: item_id, length: 3}]
vectors: [{name: v, dim: 2}]
""",
    where="test",
)

word = st.one_of(st.none(), st.sampled_from(["a", "b", "ü", "0", "16777217"]))
rows_of_any_shape = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["u1", "u2", "u3"]),
            "item_id": st.sampled_from(["1", "2", "3"]),
            "price": st.one_of(st.none(), st.floats(-5, 5, allow_nan=False)),
            "group": word,
            "recent": st.one_of(st.none(), st.lists(st.sampled_from(["1", "2", "3", "unseen"]), max_size=6)),
            "v": st.one_of(st.none(), st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)).map(list)),
        }
    ),
    min_size=1,
    max_size=20,
)


def frame(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema={
            "user_id": pl.String, "item_id": pl.String, "price": pl.Float64,
            "group": pl.String, "recent": pl.List(pl.String), "v": pl.List(pl.Float32),
        },
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(train=rows_of_any_shape, other=rows_of_any_shape)
def test_a_request_row_is_encoded_like_the_same_table_row(
    train: list[dict[str, object]], other: list[dict[str, object]]
) -> None:
    encoder = Encoder.fit(frame(train).to_arrow(), SCHEMA)
    table, request = encoder.encode_table(frame(other).to_arrow()), encoder.encode_rows(other)
    np.testing.assert_array_equal(table.ids, request.ids.numpy())
    np.testing.assert_array_equal(table.sequences["recent"], request.sequences["recent"].numpy())
    np.testing.assert_array_equal(table.vectors["v"], request.vectors["v"].numpy())
    for column, size in enumerate(encoder.num_values):
        assert table.ids[:, column].min() >= 0
        assert table.ids[:, column].max() < size


def test_unseen_values_are_unknown_and_a_null_seen_in_training_is_a_value() -> None:
    train = frame([{"user_id": "u", "item_id": "1", "price": 1.0, "group": None, "recent": [], "v": None}] * 2)
    encoder = Encoder.fit(train.to_arrow(), SCHEMA)
    group = [f.name for f in encoder.columns].index("group")
    assert encoder.encode_rows([{"group": None}]).ids[0, group] == 1
    assert encoder.encode_rows([{"group": "new"}]).ids[0, group] == 0
    assert encoder.encode_rows([{"item_id": "2"}]).ids[0].tolist()[:3] == [0, 0, 0]


def test_large_integer_ids_stay_apart() -> None:
    ids = [16777216, 16777217, 2**53, 2**53 + 1]
    train = pl.DataFrame({"user_id": ["u"] * 4, "item_id": [str(i) for i in ids], "price": [1.0] * 4, "group": ["g"] * 4,
                          "recent": [[]] * 4, "v": [None] * 4}, schema_overrides={"recent": pl.List(pl.String), "v": pl.List(pl.Float32)})  # fmt: skip
    encoder = Encoder.fit(train.to_arrow(), SCHEMA)
    encoded = encoder.encode_rows([{"item_id": i} for i in ids]).ids[:, 1].tolist()
    assert sorted(encoded) == [1, 2, 3, 4]


def test_canonical_writes_equal_values_equally() -> None:
    assert canonical(42) == canonical(42.0) == canonical("42") == "42"
    assert canonical(True) == "true"
    assert canonical(None) == canonical(float("nan"))
    assert canonical(0.5) == "0.5"
    assert canonical("") == canonical(None)  # the clean log knows no empty text
    for value in (1e-7, 0.000015, 1e22 + 0.5, -2.5e-9):
        assert canonical(value) == pl.Series([value]).cast(pl.String)[0] or value.is_integer()


def test_save_and_load_give_the_same_encoding(tmp_path: Path) -> None:
    rows = [
        {"user_id": f"u{i}", "item_id": str(i % 3), "price": float(i), "group": "g", "recent": ["1"], "v": [0.0, 1.0]}
        for i in range(9)
    ]
    encoder = Encoder.fit(frame(rows).to_arrow(), SCHEMA)
    encoder.save(tmp_path)
    again = Encoder.load(tmp_path)
    assert again.num_values == encoder.num_values
    np.testing.assert_array_equal(
        again.encode_table(frame(rows).to_arrow()).ids, encoder.encode_table(frame(rows).to_arrow()).ids
    )
    (tmp_path / "vocabularies.arrow").write_bytes(b"not arrow")
    with pytest.raises(BundleError, match="cannot be read"):
        Encoder.load(tmp_path)


def test_encoded_rows_round_trip_and_refuse_damage(tmp_path: Path) -> None:
    rows = [{"user_id": "u1", "item_id": "1", "price": 1.0, "group": "g", "recent": ["1"], "v": [0.0, 1.0]}]
    encoded = Encoder.fit(frame(rows).to_arrow(), SCHEMA).encode_table(frame(rows).to_arrow())
    encoded.save(tmp_path / "x.safetensors")
    again = EncodedRows.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(again.ids, encoded.ids)
    np.testing.assert_array_equal(again.user, [hash_user("u1")])
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(DataError, match="cannot be read"):
        EncodedRows.load(tmp_path / "x.safetensors")


def test_counts_are_aligned_with_the_joint_table() -> None:
    ids = np.array([[1, 0], [1, 2], [2, 2], [0, 1]], np.int32)
    assert count_values(ids, (3, 4)).tolist() == [0, 2, 1, 0, 1, 2, 0]
    assert table_offsets((3, 4)).tolist() == [0, 3]


def test_a_log_without_users_groups_nothing() -> None:
    schema: LogSchema = parse_schema("{name: t, time: {format: order}, fields: [{name: a}]}", where="test")
    table = pl.DataFrame({"a": ["x", "y"]}).to_arrow()
    assert Encoder.fit(table, schema).encode_table(table).user.tolist() == [-1, -1]
