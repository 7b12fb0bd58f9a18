"""Ingest conserves every record, is deterministic, and names its snapshot after its content."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from thinktwice.data.feature_tables import feature_version
from thinktwice.data.ingest import ingest
from thinktwice.data.row_ids import row_ids, row_numbers
from thinktwice.data.sources import text
from thinktwice.data.sources.registry import SOURCES, builtin_schema
from thinktwice.errors import DataError, ResourceError
from thinktwice.files import read_json
from thinktwice.xxh64 import xxh64_of_integers

GOOD = "\t".join(str(i) for i in range(40))


def test_row_ids_are_those_of_the_hash_library() -> None:
    ordinals = np.array([0, 1, 2, 255, 2**40, 2**62])
    seed = xxhash.xxh64_intdigest(b"ml-1m")
    expected = [xxhash.xxh64_hexdigest(int(i).to_bytes(8, "little"), seed=seed) for i in ordinals]
    assert row_ids("ml-1m", ordinals).to_pylist() == expected
    assert row_numbers(np.array(expected)).tolist() == [int(e, 16) for e in expected]
    assert len(np.unique(xxh64_of_integers(np.arange(100_000), 7))) == 100_000
    with pytest.raises(DataError, match="16 hex digits"):
        row_numbers(np.array(["not hexadecimal!"]))


lines = st.lists(
    st.one_of(st.just(GOOD.encode()), st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b""))),
    min_size=1,
    max_size=30,
)


@settings(max_examples=25, deadline=None)
@given(lines, st.integers(5, 400), st.sampled_from([b"\n", b"\r\n"]))
def test_every_line_ends_up_in_the_log_or_beside_it(content: list[bytes], block_bytes: int, end: bytes) -> None:
    content = [GOOD.encode(), *content, GOOD.encode()]
    with tempfile.TemporaryDirectory() as name, mock.patch.object(text, "BLOCK_BYTES", block_bytes):
        folder = Path(name)
        (folder / "train.txt").write_bytes(end.join(content) + end)
        snapshot = ingest("criteo", folder / "train.txt", None, folder / "raw")
        log, rest = pl.read_parquet(folder / "raw/log.parquet"), pl.read_parquet(folder / "raw/unparsable.parquet")
    assert snapshot.rows + snapshot.unparsable_rows == len(content) == log.height + rest.height
    assert sorted([*log["source_row"], *rest["source_row"]]) == list(range(len(content)))
    assert len({*log["row_id"], *rest["row_id"]}) == len(content)
    assert snapshot.rows == content.count(GOOD.encode())
    for row, raw in rest.select("source_row", "raw").iter_rows():
        assert raw == content[row].decode("utf-8", errors="backslashreplace")


def test_a_limit_takes_the_first_records_broken_ones_included(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n".join([GOOD, "broken", GOOD, GOOD]))
    snapshot = ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw", limit=3)
    assert (snapshot.rows, snapshot.unparsable_rows) == (2, 1)
    with pytest.raises(DataError, match="limit -1 is negative"):
        ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw", limit=-1)


def test_the_snapshot_id_follows_the_content_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.txt").write_text(GOOD + "\n" + GOOD)
    one = ingest("criteo", tmp_path / "a/train.txt", None, tmp_path / "raw1")
    same = ingest("criteo", tmp_path / "b/train.txt", None, tmp_path / "raw2")
    assert one == same
    for file in ("log.parquet", "schema.yaml", "snapshot.json", "unparsable.parquet"):
        assert (tmp_path / "raw1" / file).read_bytes() == (tmp_path / "raw2" / file).read_bytes()
    assert read_json(tmp_path / "raw1/snapshot.json")["snapshot_id"] == one.snapshot_id
    others = [
        ingest("criteo", tmp_path / "a/train.txt", None, tmp_path / "raw3", limit=1).snapshot_id,
    ]
    (tmp_path / "a/train.txt").write_text(GOOD)
    others.append(ingest("criteo", tmp_path / "a/train.txt", None, tmp_path / "raw3").snapshot_id)
    assert len({one.snapshot_id, *others}) == 3


def test_the_seed_matters_to_a_source_that_draws_its_rows_and_to_no_other(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(GOOD)
    given = [ingest("criteo", tmp_path / "train.txt", None, tmp_path / f"raw{seed}", seed=seed) for seed in (0, 7)]
    assert given[0] == given[1] and given[1].seed == 0
    drawn = [ingest("sim", None, None, tmp_path / f"sim{seed}", limit=50, seed=seed) for seed in (0, 7)]
    assert drawn[0].snapshot_id != drawn[1].snapshot_id
    assert [name for name, source in SOURCES.items() if source.seeded] == ["sim"]


def test_the_feature_version_follows_everything_that_makes_the_features() -> None:
    ml, sim = builtin_schema("ml-1m"), builtin_schema("sim")
    assert feature_version(ml, "0" * 16, "0.1.0").startswith("ml-1m-")
    versions = [
        feature_version(ml, "0" * 16, "0.1.0"),
        feature_version(ml, "1" * 16, "0.1.0"),
        feature_version(ml, "0" * 16, "0.1.1"),
        feature_version(sim, "0" * 16, "0.1.0"),
    ]
    assert len({v.rsplit("-", 1)[1] for v in versions}) == 4


def test_a_full_disk_is_named_and_the_old_log_stays(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(GOOD)
    old = ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw")
    (tmp_path / "train.txt").write_text(GOOD + "\n" + GOOD)
    with (
        mock.patch("pyarrow.parquet.ParquetWriter.write_table", side_effect=OSError(28, "No space left on device")),
        pytest.raises(ResourceError, match=r"no space left while writing .*raw: free some disk space"),
    ):
        ingest("criteo", tmp_path / "train.txt", None, tmp_path / "raw")
    assert read_json(tmp_path / "raw/snapshot.json")["snapshot_id"] == old.snapshot_id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw", "train.txt"]
