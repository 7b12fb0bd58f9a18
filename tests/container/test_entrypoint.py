"""The predictor's entry point: Java is started on a private, checked folder, and not at all where the release is refused.

The script of the image, with the paths of this machine in the place of the image's, and a Java that says what it was given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.components.deployed import make_store
from tests.serving.releases import pack, rezip
from tests.serving.small import small
from thinktwice.release.champion import install_champion
from thinktwice.release.release import write_release
from thinktwice.release.signing import make_keys

__all__ = ["small"]

ROOT = Path(__file__).resolve().parents[2]
JAVA = """#!/bin/sh
for argument in "$@"; do echo "argument $argument"; done
"""


@pytest.fixture(scope="module")
def champion(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("champion")
    archive = pack(small / "bundle", folder)
    made = install_champion(
        folder / "state",
        bundle_dir=small / "bundle",
        archive=archive,
        feature_store_dir=make_store(folder / "store"),
    )
    return made.folder


@pytest.fixture
def mounted(champion: Path, tmp_path: Path) -> Path:
    """What a storage initializer leaves: the release without the parts of a champion."""
    shutil.copytree(champion, tmp_path / "models", ignore=shutil.ignore_patterns("bundle", "champion.json"))
    return tmp_path / "models"


def start(mounted: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = mounted.parent
    text = (ROOT / "images" / "predictor" / "entrypoint.sh").read_text(encoding="utf-8")
    script = folder / "entrypoint.sh"
    script.write_text(text.replace("/opt/venv/", f"{sys.prefix}/").replace("/tmp/metrics", str(folder / "metrics")))
    java = folder / "java" / "bin" / "java"
    java.parent.mkdir(parents=True, exist_ok=True)
    java.write_text(JAVA)
    java.chmod(0o755)
    (folder / "tmp").mkdir(exist_ok=True)
    given = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAVA_HOME": str(folder / "java"),
        "TEMP": str(folder / "tmp"),
        "THINKTWICE_FEATURE_STORE": str(mounted / "feature_store"),
        **environment,
    }
    arguments = [f"--model-store={mounted}", "--models=ctr=ctr.mar", "--disable-token-auth"]
    return subprocess.run(["sh", str(script), *arguments], env=given, capture_output=True, text=True, timeout=120)


def test_java_gets_a_private_folder_and_no_archive(mounted: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp" / "release").mkdir(parents=True)
    (tmp_path / "tmp" / "release" / "left behind").touch()  # by a container before
    done = start(mounted)
    assert done.returncode == 0, done.stderr
    arguments = [line.removeprefix("argument ") for line in done.stdout.splitlines()]
    store = Path(arguments[arguments.index("-s") + 1])
    assert store == tmp_path / "tmp" / "release" and store.stat().st_mode & 0o777 == 0o700
    assert arguments[arguments.index("-m") + 1] == "ctr=ctr"
    assert [p.name for p in store.iterdir()] == ["ctr"]
    assert {p.name for p in (store / "ctr").iterdir()} == {
        "MAR-INF",
        "bundle",
        "feature_store",
        "model-config.yaml",
        "release.json",
    }
    assert str(mounted) not in done.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("code", "contains code ('handler.py')"),
        ("cut", "bytes instead of"),
        ("store", "feature_store.yaml has "),
        ("unsigned", "is not signed, and THINKTWICE_TRUSTED_KEYS requires a signature"),
    ],
)
def test_java_does_not_start_where_the_release_is_refused(
    mounted: Path, tmp_path: Path, change: str, words: str
) -> None:
    archive, environment = mounted / "ctr.mar", {}
    match change:
        case "code":
            rezip(archive, tmp_path / "other.mar", lambda files: files.update({"handler.py": b""}))
            (tmp_path / "other.mar").replace(archive)
            (mounted / "release.json").unlink()
        case "cut":
            archive.write_bytes(archive.read_bytes()[:-1])
        case "store":
            with (mounted / "feature_store" / "feature_store.yaml").open("a") as file:
                file.write("\n")
        case "unsigned":
            environment = {"THINKTWICE_TRUSTED_KEYS": str(make_keys(tmp_path / "keys")[1])}
    done = start(mounted, **environment)
    assert done.returncode == 1 and "argument" not in done.stdout
    (sentence,) = done.stderr.splitlines()
    assert words in sentence
    if change == "unsigned":
        write_release(mounted, tmp_path / "keys" / "signing-key.pem")
        assert start(mounted, **environment).returncode == 0
