"""Nothing half-written: atomic files and folders, errors that name the thing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinktwice.errors import ResourceError
from thinktwice.files import atomic_dir, atomic_file, read_json, sha256_file, sha256_text, write_json


def test_a_failed_write_keeps_the_old_content_and_leaves_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_atomic_dir_replaces_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "d"
    for content in ("one", "two"):
        with atomic_dir(target) as folder:
            (folder / content).write_text(content)
    assert [p.name for p in target.iterdir()] == ["two"]
    with pytest.raises(KeyboardInterrupt), atomic_dir(target) as folder:
        (folder / "three").write_text("3")
        raise KeyboardInterrupt
    assert [p.name for p in target.iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_is_one_sentence_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"no space left while writing .*x\.bin: free some disk space"):
        with atomic_file(tmp_path / "x.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_json_is_stable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    first = sha256_file(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"a": "ü", "b": 1})
    assert sha256_file(tmp_path / "a.json") == first
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == 1


def test_text_hash_counts_the_boundaries() -> None:
    assert sha256_text("ab", "c") != sha256_text("a", "bc")


REPLACING = """
import sys
from pathlib import Path
from thinktwice.files import atomic_dir
number = 0
while True:
    number += 1
    with atomic_dir(sys.argv[1]) as folder:
        (folder / "number").write_text(str(number))
        (folder / "again").write_text(str(number))
"""


def test_a_kill_at_any_moment_leaves_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "d"
    with atomic_dir(target) as folder:
        for name in ("number", "again"):
            (folder / name).write_text("0")
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", REPLACING, str(target)])
        time.sleep(0.4 + 0.05 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert (target / "number").read_text() == (target / "again").read_text()
    assert int((target / "number").read_text()) > 0


def test_without_an_exchange_a_failed_replacement_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "d"
    with atomic_dir(target) as folder:
        (folder / "old").write_text("")
    monkeypatch.setattr("thinktwice.files._exchange", lambda first, second: False)
    with atomic_dir(target) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in target.iterdir()] == ["new"]
    replace = os.replace

    def failing(source: Path, destination: Path) -> None:
        if str(source).endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), atomic_dir(target) as folder:
        (folder / "newer").write_text("")
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
