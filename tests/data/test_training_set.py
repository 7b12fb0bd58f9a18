"""The training set: nothing lost, the encoder sees train alone, splits do not depend on row order."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from pipelines.summary import print_parts
from thinktwice.data.splits import SplitSpec, assign_split
from thinktwice.data.training_set import build_training_set, load_training_set
from thinktwice.errors import DataError, RowsLostError
from thinktwice.evaluate.slices import cold_start
from thinktwice.schema import parse_schema

SCHEMA = parse_schema(
    "{name: t, time: {column: ts}, entities: {user: {key: user_id}}, fields: [{name: site}]}", where="test"
)
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def log(rows: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(rows)],
            "event_time": [START + timedelta(minutes=i) for i in range(rows)],
            "label": [i % 2 for i in range(rows)],
            "user_id": [f"u{i // 10}" for i in range(rows)],
            "site": [f"s{i % 7}" for i in range(rows)],
        }
    )


def test_parts_add_up_and_stay_in_time_order(tmp_path: Path) -> None:
    info = build_training_set(
        log(200).sample(fraction=1, shuffle=True, seed=1).to_arrow(), SCHEMA, tmp_path / "ts", SplitSpec()
    )
    opened = load_training_set(tmp_path / "ts")
    assert [info.parts[p].rows for p in ("train", "valid", "test")] == [160, 20, 20]
    assert info.conservation.model_dump() == {"rows_in": 200, "rows_out": 200, "unique_row_ids": 200}
    assert opened.rows("train")["event_time"].max() < opened.rows("valid")["event_time"].min()
    assert len(opened.part("test")) == 20
    np.testing.assert_array_equal(opened.part("test").label, opened.rows("test")["label"].to_numpy())


def test_the_encoder_never_sees_later_rows(tmp_path: Path) -> None:
    info = build_training_set(log(200).to_arrow(), SCHEMA, tmp_path / "ts", SplitSpec())
    opened = load_training_set(tmp_path / "ts")
    assert opened.encoder.index_of("user_id", "u0") > 0
    assert opened.encoder.index_of("user_id", "u19") == 0
    assert info.parts["test"].unseen_share["user"] == 1.0
    assert info.parts["train"].unseen_share["user"] == 0.0 and info.parts["train"].anonymous_share is None


def test_rows_without_a_user_are_no_rows_of_an_unseen_user(tmp_path: Path) -> None:
    schema = parse_schema(SCHEMA.to_yaml().replace("key: user_id", "key: user_id\n    anonymous: true"), where="test")
    frame = log(1000).with_columns(
        user_id=pl.when(pl.int_range(1000) % 4 > 0).then(
            pl.format("u{}", pl.int_range(1000) % 3 + (pl.int_range(1000) // 850))
        )
    )
    info = build_training_set(frame.to_arrow(), schema, tmp_path / "ts", SplitSpec())
    data = load_training_set(tmp_path / "ts")
    test = data.rows("test")
    unseen = (test["user_id"] == "u3").sum() / 100
    assert 0.2 < unseen < 0.3
    assert (info.parts["test"].unseen_share["user"], info.parts["test"].anonymous_share) == (unseen, 0.25)
    console = Console(record=True, width=150)
    print_parts(console, tmp_path / "ts")
    (line,) = [line for line in console.export_text().splitlines() if line.split()[:1] == ["test"]]
    assert line.split()[-2:] == [f"{unseen:.1%}", "25.0%"]
    frame = pl.concat([test] * 4)
    masks = cold_start(data, frame)
    assert list(masks) == ["cold user", "no user", "seen user"]
    assert (np.sum(list(masks.values()), axis=0) == 1).all() and (
        masks["no user"] == frame["user_id"].is_null().to_numpy()
    ).all()


def test_a_random_split_does_not_depend_on_row_order() -> None:
    frame = log(500)
    spec = SplitSpec(kind="random", seed=3)
    codes = assign_split(frame["event_time"].dt.epoch("us").to_numpy(), frame["row_id"].to_numpy(), spec)
    turned = frame.reverse()
    again = assign_split(turned["event_time"].dt.epoch("us").to_numpy(), turned["row_id"].to_numpy(), spec)
    np.testing.assert_array_equal(codes, again[::-1])
    assert 20 < (codes == 1).sum() < 80
    assert not np.array_equal(
        codes, assign_split(np.zeros(500), frame["row_id"].to_numpy(), SplitSpec(kind="random", seed=4))
    )


def test_an_instant_never_straddles_a_time_boundary() -> None:
    time = np.repeat(np.arange(20), 10)
    codes = assign_split(time, np.array([str(i) for i in range(200)]), SplitSpec(valid=0.13, test=0.12))
    assert all(len(set(codes[time == t])) == 1 for t in range(20))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (log(1), "leaves no rows for"),
        (
            log(100).with_columns(label=pl.lit(0)),
            "all 80 training rows have the same label \\(0\\), .*: give a longer log",
        ),
        (log(100).drop("site"), "lack the columns site"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_training_set(frame.to_arrow(), SCHEMA, tmp_path / "ts", SplitSpec())
    assert list(tmp_path.iterdir()) == []


def test_a_repeated_row_id_is_refused(tmp_path: Path) -> None:
    twice = pl.concat([log(100), log(100).head(1)])
    with pytest.raises(RowsLostError, match="101 rows went into the split"):
        build_training_set(twice.to_arrow(), SCHEMA, tmp_path / "ts", SplitSpec())


def test_a_folder_that_is_no_training_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a training set"):
        load_training_set(tmp_path)
