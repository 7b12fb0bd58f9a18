"""A log and its tables of users and items, given together, become one schema that runs as it is."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.data.layouts import write
from thinktwice.cli import main
from thinktwice.data.infer.infer import infer_schema
from thinktwice.data.ingest import ingest
from thinktwice.data.sources.paths import joined
from thinktwice.errors import DataError
from thinktwice.schema import LogSchema, load_schema
from thinktwice.validate.split import split_log

START = datetime(2024, 3, 1, tzinfo=timezone.utc)
OCCUPATIONS = ["writer", "doctor", "other", "none"]


def files(folder: Path, ending: str = "csv", rows: int = 2000) -> dict[str, pl.DataFrame]:
    """A log of ratings, and the tables of its users and items."""
    draw = np.random.default_rng(5)
    frames = {
        "ratings": pl.DataFrame(
            {
                "userId": draw.integers(0, 90, rows),
                "movieId": draw.integers(1000, 1070, rows),
                "rating": draw.integers(1, 6, rows),
                "timestamp": 1_700_000_000 + np.sort(draw.integers(0, 10**6, rows)),
            }
        ),
        "users": pl.DataFrame(
            {
                "userId": range(90),
                "gender": draw.choice(["F", "M"], 90),
                "age": draw.integers(10, 80, 90),
                "occupation": draw.choice(OCCUPATIONS, 90),
                "postcode": [f"{n:05}" for n in range(90)],
            }
        ),
        "movies": pl.DataFrame(
            {
                "id": range(1000, 1070),
                "title": [f"The film no. {n}" for n in range(70)],
                "studio": draw.choice(["a", "b", "c"], 70),
                "language": ["en"] * 70,
            }
        ),
    }
    for name, frame in frames.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write(frame, folder / name, ending)
    return frames


def paths(folder: Path, *names: str) -> str:
    return joined([str(next((folder / name).iterdir())) for name in names])


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("order", [("ratings", "users", "movies"), ("movies", "users", "ratings")])
def test_the_log_and_its_tables_are_told_apart(order: tuple[str, ...], ending: str, tmp_path: Path) -> None:
    files(tmp_path, ending)
    found = infer_schema(paths(tmp_path, *order), base=tmp_path)
    schema = found.schema
    assert found.log_paths == (paths(tmp_path, "ratings"),)
    assert (schema.key_of("user"), schema.key_of("item"), schema.time.column) == ("userId", "movieId", "timestamp")
    assert (schema.tables.users, schema.tables.items) != (None, None)
    assert schema.table_key("user") == "userId" and schema.table_key("item") == "id"
    assert schema.table_title("item") == "title"
    of = {f.name: (f.entity, f.kind) for f in schema.fields if f.derived is None}
    assert of == {
        "gender": ("user", "categorical"),
        "age": ("user", "numeric"),
        "occupation": ("user", "categorical"),
        "studio": ("item", "categorical"),
    }
    assert "# left out of items: language: it has one value, 'en'" in found.text
    assert "# left out of users: postcode" in found.text


def run(folder: Path, schema: Path, log: str) -> LogSchema:
    ingest("log", log, schema, folder / "raw")
    split = split_log(folder / "raw", folder / "clean", folder / "bad", run_id="r")
    assert split.rows_quarantined == 0 and all(t.rows_quarantined == 0 for t in split.tables.values())
    assert not any(rule.endswith("unmatched") for rule in split.notes)
    return load_schema(folder / "clean" / "schema.yaml")


def test_the_command_writes_a_schema_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files(tmp_path)
    out = tmp_path / "schemas" / "s.yaml"
    given = paths(tmp_path, "ratings", "users", "movies").split("\n")
    assert main(["data", "infer-schema", *given, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"--path {given[0]} --schema {out}" in shown and "--path " + given[1] not in shown
    assert "table of users: ../users/" in shown and "by userId" in shown
    run(tmp_path / "run", out, given[0])


def test_a_table_with_a_row_per_time_is_valid_from_it(tmp_path: Path) -> None:
    frames = files(tmp_path)
    movies = frames["movies"].with_columns(since=pl.lit("2020-01-01T00:00:00Z"))
    later = movies.head(5).with_columns(since=pl.lit("2024-01-02T00:00:00Z"), studio=pl.lit("d"))
    pl.concat([movies, later]).write_csv(next((tmp_path / "movies").iterdir()))
    found = infer_schema(paths(tmp_path, "ratings", "movies"), base=tmp_path)
    valid_from = found.schema.valid_from("item")
    assert valid_from is not None and (valid_from.column, valid_from.format) == ("since", "datetime")
    (tmp_path / "s.yaml").write_text(found.text)
    run(tmp_path / "run", tmp_path / "s.yaml", paths(tmp_path, "ratings"))


def changed(frames: dict[str, pl.DataFrame], what: str) -> tuple[str, Any]:
    users = frames["users"]
    return {
        "twice": ("users", pl.concat([users, users.head(1).with_columns(age=pl.lit(9, pl.Int64))])),
        "strange": ("users", users.with_columns(userId=pl.col("userId") + 10_000)),
        "empty": ("users", users.clear()),
    }[what]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("twice", ("several rows for userId '0'", "no column with the time")),
        ("strange", ("none of them has the ids of the log (userId and movieId)",)),
        ("empty", ("contains no rows",)),
    ],
)
def test_files_that_do_not_fit_are_named(what: str, words: tuple[str, ...], tmp_path: Path) -> None:
    name, frame = changed(files(tmp_path), what)
    frame.write_csv(next((tmp_path / name).iterdir()))
    with pytest.raises(DataError) as caught:
        infer_schema(paths(tmp_path, "ratings", "users"), base=tmp_path)
    assert all(word in str(caught.value) for word in words) and str(tmp_path / "users") in str(caught.value)


def test_two_tables_of_users_are_named(tmp_path: Path) -> None:
    frames = files(tmp_path)
    (tmp_path / "more").mkdir()
    frames["users"].select("userId", city="postcode").write_csv(tmp_path / "more" / "more.csv")
    with pytest.raises(DataError, match="both have the attributes of the users"):
        infer_schema(paths(tmp_path, "ratings", "users", "more"), base=tmp_path)


def test_a_leak_in_a_table_is_found(tmp_path: Path) -> None:
    rows = 3000
    frames = files(tmp_path, rows=rows)
    item = np.arange(rows) % 70
    log = frames["ratings"].with_columns(
        movieId=pl.Series(1000 + item), rating=pl.Series(np.where(item < 35, 4, 1) + item % 2)
    )
    log.write_csv(next((tmp_path / "ratings").iterdir()))
    movies = frames["movies"].with_columns(studio=pl.Series(["good"] * 35 + ["bad"] * 35))
    movies.write_csv(next((tmp_path / "movies").iterdir()))
    found = infer_schema(paths(tmp_path, "ratings", "movies"), base=tmp_path)
    assert [f.column for table in found.roles.tables for f in table.fields if f.leak] == ["studio"]
    assert "studio" not in {f.name for f in found.schema.fields} and found.schema.table_title("item") == "title"
    movies.drop("title").write_csv(next((tmp_path / "movies").iterdir()))
    found = infer_schema(paths(tmp_path, "ratings", "movies"), base=tmp_path)
    assert "item" not in found.schema.side_tables and "none of its columns can be used" in found.text


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_columns_of_several_values_become_lists(ending: str, tmp_path: Path) -> None:
    frames = files(tmp_path, ending)
    draw = np.random.default_rng(1)
    genres = [
        sorted(draw.choice(["Action", "Drama", "War", "Comedy", "Noir"], n % 3 + 1, replace=False)) for n in range(70)
    ]
    movies = frames["movies"].with_columns(genres=pl.Series(genres))
    if ending == "csv":
        movies = movies.with_columns(pl.col("genres").list.join("|"))
    write(movies, tmp_path / "movies", ending)
    found = infer_schema(paths(tmp_path, "ratings", "movies"), base=tmp_path)
    of = {f.name: f for f in found.schema.fields}
    assert (of["genres"].kind, of["genres"].entity, of["genres"].max_length) == ("list", "item", 20)
    assert of["studio"].kind == "categorical" and found.schema.table_title("item") == "title"
    (tmp_path / "s.yaml").write_text(found.text)
    run(tmp_path / "run", tmp_path / "s.yaml", paths(tmp_path, "ratings"))
