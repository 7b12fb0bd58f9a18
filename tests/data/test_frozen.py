"""Constants that data on disk depends on, frozen: whoever changes one makes every deployed model wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from tests.data.test_encoder import SCHEMA, frame
from thinktwice.data.encoder import ENCODER_FILE, NULL, VOCABULARY_FILE, Encoder, hash_user
from thinktwice.data.row_ids import row_ids, row_numbers
from thinktwice.errors import BundleError
from thinktwice.validate.drift import hashed

ROWS = [
    {
        "user_id": f"u{i % 3}", "item_id": str(i % 4), "price": [0.1, 0.25, 3.0, None, 2.5][i % 5],
        "group": ["a", "ü", None, "1e-7"][i % 4], "recent": ["1", "2"][: i % 3], "v": [0.5, -1.0] if i % 2 else None,
    }
    for i in range(20)
]  # fmt: skip
#: What an encoder of the first format made of ROWS.
FIRST_BOUNDS = [0.1, 0.25, 2.5]
FIRST_IDS = [[1, 1, 2, 3], [2, 2, 3, 4], [3, 3, 4, 1], [1, 4, 0, 2], [2, 1, 4, 3], [3, 2, 2, 4], [1, 3, 3, 1], [2, 4, 4, 2], [3, 1, 0, 3], [1, 2, 4, 4],
             [2, 3, 2, 1], [3, 4, 3, 2], [1, 1, 4, 3], [2, 2, 0, 4], [3, 3, 4, 1], [1, 4, 2, 2], [2, 1, 3, 3], [3, 2, 4, 4], [1, 3, 0, 1], [2, 4, 4, 2]]  # fmt: skip


@pytest.mark.parametrize(
    ("user", "hashed_to"),
    [(None, -1), ("", 1622210670741801569), ("u1", 5683563222148755192), ("42", 651866996521537736), ("ü", 3374337978866356151), ("a" * 100, 2346034232933058307)],
)  # fmt: skip
def test_hashes_of_users(user: str | None, hashed_to: int) -> None:
    assert hash_user(user) == hashed_to


def test_row_ids() -> None:
    ids = row_ids("parquet", np.array([0, 1, 2, 2**40]))
    assert ids.to_pylist() == ["d6ea007ce7766065", "1e4447ff893b4372", "4ae8d395ae2e1b77", "5cb96c69375349f9"]
    assert row_ids("ü", np.array([0])).to_pylist() == ["2b8c9a5219eaf543"]
    assert row_numbers(ids).tolist()[0] == 0xD6EA007CE7766065
    assert (hashed("u1"), NULL) == ("#69dc8408", "\x00null")


def write_first(folder: Path, form: int | None = None) -> None:
    """An encoder of ROWS as the first format wrote it."""
    words = {"user_id": ["u0", "u1", "u2"], "item_id": ["0", "1", "2", "3"], "group": [NULL, "1e-7", "a", "ü"]}
    table = pa.table(
        {
            "field": [n for n, values in words.items() for _ in values],
            "value": [v for values in words.values() for v in values],
        }
    )
    with pa.OSFile(str(folder / VOCABULARY_FILE), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    fields = [f.model_dump() for f in SCHEMA.model_fields_in_order()]
    value = {
        "fields": fields,
        "user_key": "user_id",
        "vocabulary_fields": list(words),
        "bounds": {"price": FIRST_BOUNDS},
    }
    (folder / ENCODER_FILE).write_text(
        json.dumps(value if form is None else {"format": form, **value}), encoding="utf-8"
    )


def test_an_encoder_of_the_first_format_encodes_as_it_did(tmp_path: Path) -> None:
    write_first(tmp_path)
    encoder = Encoder.load(tmp_path)
    assert encoder.encode_table(frame(ROWS).to_arrow()).ids.tolist() == FIRST_IDS
    assert encoder.encode_rows(ROWS).ids.tolist() == FIRST_IDS
    assert encoder.widens, "float32 values were widened when it was fitted"
    third = {"price": np.float32(0.1), "group": np.float32(0.1)}
    assert encoder.encode_rows([third]).ids[0].tolist()[2] == 2, "0.10000000149 is not below the bound 0.1"
    narrow = pa.table(
        {**{n: frame(ROWS).to_arrow()[n] for n in frame(ROWS).columns}, "price": pa.array([0.1] * 20, pa.float32())}
    )
    assert set(encoder.encode_table(narrow).ids[:, 2].tolist()) == {2}
    encoder.save(tmp_path)
    assert Encoder.load(tmp_path).widens, "saving does not make it another"


def test_an_encoder_of_this_format(tmp_path: Path) -> None:
    encoder = Encoder.fit(frame(ROWS).to_arrow(), SCHEMA)
    encoder.save(tmp_path)
    saved = json.loads((tmp_path / ENCODER_FILE).read_text())
    assert set(saved) == {"format", "fields", "user_key", "vocabulary_fields", "bounds"} and saved["format"] == 2
    assert saved["bounds"] == {"price": [0.175, 1.375]}
    again = Encoder.load(tmp_path)
    assert not again.widens
    assert again.encode_rows(ROWS).ids[:5].tolist() == [
        [1, 1, 1, 3],
        [2, 2, 2, 4],
        [3, 3, 3, 1],
        [1, 4, 0, 2],
        [2, 1, 3, 3],
    ]
    for price in (0.1, np.float32(0.1), "0.1"):
        assert again.encode_rows([{"price": price}]).ids[0, 2] == 1


def test_an_encoder_of_a_later_format_is_refused(tmp_path: Path) -> None:
    write_first(tmp_path, form=3)
    with pytest.raises(BundleError, match="format 3, this version reads 1 and 2"):
        Encoder.load(tmp_path)
