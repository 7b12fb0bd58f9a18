"""What ``thinktwice data simulate`` and ``ingest`` wrote can be read again, whole, by the source ``parquet``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from thinktwice.data.ingest import ingest, simulate
from thinktwice.data.row_ids import row_ids
from thinktwice.data.simulator import SimConfig
from thinktwice.data.sources import raw_log
from thinktwice.errors import DataError
from thinktwice.files import read_json, write_json
from thinktwice.schema import load_schema

GOOD = "\t".join(str(i) for i in range(40))
NO_IDS = ["row_id", "source_row"]


@pytest.fixture
def criteo_raw(tmp_path: Path) -> Path:
    """Twelve records, of which number 0, 3, 4 and 11 are broken."""
    lines = [f"broken {i}" if i in (0, 3, 4, 11) else GOOD for i in range(12)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw")
    return tmp_path / "raw"


def test_a_simulated_log_enters_with_its_own_schema(tmp_path: Path) -> None:
    simulate(SimConfig(rows=3000, users=200, items=100, noise=0.3), tmp_path / "sim")
    snapshot = ingest("parquet", tmp_path / "sim", None, tmp_path / "raw")
    assert (snapshot.source, snapshot.schema_name, snapshot.rows) == ("parquet", "sim", 3000)
    before, after = (pl.read_parquet(tmp_path / name / "log.parquet") for name in ("sim", "raw"))
    assert after.drop(NO_IDS).equals(before.drop(NO_IDS))
    assert after["row_id"].to_list() == row_ids("parquet", np.arange(3000)).to_pylist()
    assert load_schema(tmp_path / "raw/schema.yaml") == load_schema(tmp_path / "sim/schema.yaml")
    again = ingest("parquet", tmp_path / "sim", None, tmp_path / "again")
    assert again == snapshot


def test_a_given_schema_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    simulate(SimConfig(rows=500, users=100, items=100), tmp_path / "sim")
    mine = tmp_path / "mine.yaml"
    mine.write_text("{name: mine, time: {column: time_us, format: us}, label: {column: click}, fields: [{name: slot}]}")
    assert ingest("parquet", tmp_path / "sim", mine, tmp_path / "raw").schema_name == "mine"


@pytest.mark.parametrize("batch_rows", [1, 3, 1 << 17])
def test_broken_records_come_along_in_their_old_order(
    criteo_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr("thinktwice.data.sources.parquet_files.BATCH_ROWS", batch_rows)
    snapshot = ingest("parquet", criteo_raw, None, tmp_path / "again")
    assert (snapshot.rows, snapshot.unparsable_rows) == (8, 4)
    for name in ("log", "unparsable"):
        before, after = (pl.read_parquet(folder / f"{name}.parquet") for folder in (criteo_raw, tmp_path / "again"))
        assert after.drop("row_id").equals(before.drop("row_id"))
        assert after["row_id"].to_list() == row_ids("parquet", after["source_row"].to_numpy()).to_pylist()


def test_a_limit_counts_the_broken_records_too(criteo_raw: Path, tmp_path: Path) -> None:
    snapshot = ingest("parquet", criteo_raw, None, tmp_path / "again", limit=5)
    assert (snapshot.rows, snapshot.unparsable_rows) == (2, 3)


def test_a_raw_log_that_is_not_whole_is_refused(criteo_raw: Path, tmp_path: Path) -> None:
    whole = read_json(criteo_raw / "snapshot.json")
    write_json(criteo_raw / "snapshot.json", {**whole, "unparsable_rows": 5})
    with pytest.raises(DataError, match=r"contains 4 unparsable rows but its snapshot\.json says 5"):
        ingest("parquet", criteo_raw, None, tmp_path / "again")
    (criteo_raw / "snapshot.json").write_text("{")
    with pytest.raises(DataError, match=r"snapshot\.json cannot be read"):
        ingest("parquet", criteo_raw, None, tmp_path / "again")
    write_json(criteo_raw / "snapshot.json", whole)
    log = pl.read_parquet(criteo_raw / "log.parquet")
    log.reverse().write_parquet(criteo_raw / "log.parquet")
    with pytest.raises(DataError, match="not in the order of 'source_row'"):
        ingest("parquet", criteo_raw, None, tmp_path / "again")
    (criteo_raw / "log.parquet").unlink()
    with pytest.raises(DataError, match=r"without its log\.parquet"):
        ingest("parquet", criteo_raw, None, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_without_a_snapshot_is_no_raw_log(criteo_raw: Path, tmp_path: Path) -> None:
    (criteo_raw / "snapshot.json").unlink()
    assert raw_log.schema_beside(criteo_raw) is None
    with pytest.raises(DataError, match="needs a schema file"):
        ingest("parquet", criteo_raw, None, tmp_path / "again")
