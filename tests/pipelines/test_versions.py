import os
from pathlib import Path

import pytest

import thinktwice
from pipelines import versions


def test_code_version_names_the_release_and_is_stable():
    first = versions.code_version()
    assert first.startswith(f"{thinktwice.__version__}-")
    assert first == versions.code_version()


def test_code_version_sees_every_room_and_no_tests():
    names = [name for name, _ in versions.source_files()]
    for room in versions.PACKAGES:
        assert any(name.startswith(f"{room}/") for name in names), room
    assert not any(
        name.startswith(("tests/", "thinktwice/demo", "thinktwice/console", "pipelines/golden")) for name in names
    )
    assert "thinktwice/errors.py" in names


def test_code_version_changes_with_one_byte_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "room" / "step.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    monkeypatch.setattr(versions, "source_files", lambda: iter([("room/step.py", source)]))
    before = versions.code_version()
    source.write_text("x = 2\n")
    assert versions.code_version() != before


def test_data_version_follows_the_files(tmp_path: Path):
    log = tmp_path / "log.parquet"
    assert versions.data_version(str(log)) == ""  # ingest has the words for a missing file
    log.write_bytes(b"abc")
    first = versions.data_version(str(log))
    assert first and first == versions.data_version(str(log), "")
    log.write_bytes(b"abcd")
    assert versions.data_version(str(log)) != first
    second = versions.data_version(str(log))
    os.utime(log, ns=(1, 1))
    assert versions.data_version(str(log)) != second


def test_data_version_looks_into_folders(tmp_path: Path):
    (tmp_path / "part-0").write_bytes(b"abc")
    first = versions.data_version(str(tmp_path))
    (tmp_path / "part-1").write_bytes(b"")
    assert versions.data_version(str(tmp_path)) != first
