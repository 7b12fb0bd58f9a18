"""Tables of users and items: the first line of a key counts, and no line is forgotten."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from thinktwice.data.ingest import Snapshot, ingest
from thinktwice.errors import DataError
from thinktwice.files import read_json


def movielens(folder: Path, users: str) -> Path:
    folder.mkdir()
    (folder / "users.dat").write_text(users)
    (folder / "movies.dat").write_text("1::Toy Story (1995)::Animation\n1::Toy Story (1995)::Animation\n")
    (folder / "ratings.dat").write_text("1::1::5::978300760\n2::1::3::978302109\n")
    return folder


def lost(folder: Path) -> list[tuple[object, ...]]:
    return pl.read_parquet(folder / "side_unparsable.parquet").rows()


USERS = "1::F::1::10::48067\nhalf a li\n1::M::56::16::70072\n::M::25::1::55117\n2::M::25::1::55117\n"
LOST = [
    ("users.dat", 2, "half a li", "1 cells instead of 5"),
    ("users.dat", 3, "1::M::56::16::70072", "an earlier line has user_id 1, and that one counts"),
    ("users.dat", 4, "::M::25::1::55117", "it has no user_id"),
    ("movies.dat", 2, "1::Toy Story (1995)::Animation", "an earlier line has item_id 1, and that one counts"),
]


def test_every_line_without_attributes_is_kept_with_its_place(tmp_path: Path) -> None:
    snapshot = ingest("ml-1m", movielens(tmp_path / "ml-1m", USERS), None, tmp_path / "raw")
    assert (snapshot.rows, snapshot.unparsable_rows) == (2, 0), "impressions are not touched"
    assert snapshot.side_unparsable == {"users.dat": 2, "movies.dat": 0}
    assert snapshot.side_duplicates == {"users.dat": 1, "movies.dat": 1}
    assert lost(tmp_path / "raw") == LOST
    assert Snapshot.model_validate(read_json(tmp_path / "raw/snapshot.json")) == snapshot
    log = pl.read_parquet(tmp_path / "raw/log.parquet")
    assert log["gender"].to_list() == ["F", "M"]


def test_they_stay_when_the_raw_log_is_read_again(tmp_path: Path) -> None:
    first = ingest("ml-1m", movielens(tmp_path / "ml-1m", USERS), None, tmp_path / "raw")
    again = ingest("parquet", tmp_path / "raw", None, tmp_path / "again")
    assert (again.side_unparsable, again.side_duplicates) == (first.side_unparsable, first.side_duplicates)
    assert lost(tmp_path / "again") == LOST


def test_a_table_of_keyless_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"users\.dat contains no line with 5 cells"):
        ingest("ml-1m", movielens(tmp_path / "ml-1m", "::M::25::1::55117\n"), None, tmp_path / "raw")


def test_kuairand_counts_over_its_files_and_quotes_again(tmp_path: Path) -> None:
    (tmp_path / "log_standard_pure.csv").write_text("user_id,video_id,time_ms,is_click\n7,1,1649379600000,1\n")
    # The built-in schema wants more columns than this needs: a schema of one's own will do.
    schema = tmp_path / "mine.yaml"
    schema.write_text(
        "{name: mine, time: {column: time_ms, format: ms}, label: {column: is_click}, fields: [{name: tag}]}"
    )
    (tmp_path / "user_features_a.csv").write_text("user_id,age\n7,30\n8\n")
    (tmp_path / "user_features_b.csv").write_text("user_id,age\n7,31\n")
    (tmp_path / "video_features_basic_pure.csv").write_text(
        'video_id,tag,note\n1,"39,12",a\n1,"40,""x""",\n2,"open,b\n'
    )
    snapshot = ingest("kuairand", tmp_path, schema, tmp_path / "raw")
    assert snapshot.side_unparsable == {
        "user_features_a.csv": 1,
        "user_features_b.csv": 0,
        "video_features_basic_pure.csv": 1,
    }
    assert sum(snapshot.side_duplicates.values()) == 2
    found = lost(tmp_path / "raw")
    assert [line[:3] for line in found] == [
        ("user_features_a.csv", 3, "8"),
        ("user_features_b.csv", 2, "7,31"),
        ("video_features_basic_pure.csv", 3, '1,"40,""x""",'),
        ("video_features_basic_pure.csv", 4, '2,"open,b'),
    ]
    log = pl.read_parquet(tmp_path / "raw/log.parquet")
    assert (log["age"].to_list(), log["main_tag"].to_list()) == (["30"], ["39"])
