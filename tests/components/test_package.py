"""The package step: a real archive, the same bytes for the same bundle, and only for a blessed one."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import yaml

from components.deployment.package.archive import write_archive
from tests.progress_events import assert_complete, pieces
from tests.serving.small import MODEL_VERSION, bless, small  # noqa: F401
from thinktwice.errors import BundleError, PipelineError
from thinktwice.files import sha256_file
from thinktwice.release.archive import HANDLER, open_archive
from thinktwice.release.bundle import bundle_hash, load_bundle
from thinktwice.release.release import verify_release


@pytest.fixture
def blessing(small: Path, tmp_path: Path) -> Path:  # noqa: F811
    return bless(tmp_path / "blessing", bundle_hash(small / "bundle"))


def test_the_archive_holds_the_bundle(
    small: Path,  # noqa: F811
    blessing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THINKTWICE_PROGRESS", str(tmp_path / "events"))
    info = write_archive(small / "bundle", blessing, tmp_path / "archive")
    path = tmp_path / "archive" / "ctr.mar"
    reported = pieces(tmp_path / "events", "package")["archive"]
    assert_complete(reported)
    size = sum(p.stat().st_size for p in (small / "bundle").rglob("*") if p.is_file())
    assert size <= reported[-1][1] <= size + 10_000  # bytes; the archiver adds its manifest and settings
    assert info["archive_sha256"] == sha256_file(path)
    assert info["bundle_hash"] == bundle_hash(small / "bundle")
    with zipfile.ZipFile(path) as content:
        content.extractall(tmp_path / "unpacked")
    assert load_bundle(tmp_path / "unpacked" / "bundle").hash == info["bundle_hash"]
    manifest = json.loads((tmp_path / "unpacked" / "MAR-INF" / "MANIFEST.json").read_text())
    assert manifest["model"] == {
        "modelName": "ctr",
        "modelVersion": MODEL_VERSION,
        "handler": HANDLER,
        "configFile": "model-config.yaml",
    }
    config = yaml.safe_load((tmp_path / "unpacked" / "model-config.yaml").read_text())
    assert (config["minWorkers"], config["maxWorkers"], config["batchSize"]) == (1, 1, 1)
    data = {".json", ".yaml", ".arrow", ".safetensors", ".html"}
    assert {p.suffix for p in (tmp_path / "unpacked").rglob("*") if p.is_file()} == data, "data and no code"


def test_the_same_bundle_gives_the_same_bytes(small: Path, blessing: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(small / "bundle", tmp_path / "copy")
    first = write_archive(small / "bundle", blessing, tmp_path / "first")
    assert write_archive(tmp_path / "copy", blessing, tmp_path / "second") == first
    assert sha256_file(tmp_path / "first" / "ctr.mar") == sha256_file(tmp_path / "second" / "ctr.mar")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # TorchServe leaves a file of its own open
def test_torchserve_finds_the_handler_in_the_installed_package(tmp_path: Path) -> None:
    """By TorchServe's own loader, which takes the one class that is defined in the module."""
    from ts.model_loader import TsModelLoader
    from ts.utils.util import list_classes_from_module

    module, function = TsModelLoader()._load_handler_file(HANDLER)
    assert function is None and not hasattr(module, "handle")
    (found,) = list_classes_from_module(module)
    assert (found.__name__, found.__module__) == ("CTRHandler", HANDLER)


def test_what_is_packaged_is_what_a_server_accepts(small: Path, blessing: Path, tmp_path: Path) -> None:  # noqa: F811
    write_archive(small / "bundle", blessing, tmp_path / "archive")
    with open_archive(tmp_path / "archive" / "ctr.mar") as content:
        content.verify()
        assert content.bundle_hash == bundle_hash(small / "bundle")
        assert content.settings["maxWorkers"] == 1
    assert verify_release(tmp_path / "archive").release.feature_store is None


def test_no_blessing_no_archive(small: Path, tmp_path: Path) -> None:  # noqa: F811
    own = bundle_hash(small / "bundle")
    refused = {
        "no": (bless(tmp_path / "no", own, blessed=False), r"is not blessed \(the first one\)"),
        "other": (bless(tmp_path / "other", "f" * 64), "the blessing is for bundle ffffffffffff"),
        "none": (tmp_path / "none", "cannot be read"),
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "blessing.json").write_text("{}")
    refused["empty"] = (tmp_path / "empty", "cannot be read")
    for blessing, message in refused.values():
        with pytest.raises(PipelineError, match=message):
            write_archive(small / "bundle", blessing, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_a_damaged_bundle_is_not_packed(small: Path, blessing: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(small / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle" / "schema.yaml").write_text("name: x\n")
    with pytest.raises(BundleError, match=r"schema\.yaml"):
        write_archive(tmp_path / "bundle", blessing, tmp_path / "archive")


@pytest.mark.parametrize("name", ["a,b", "a:b", "[1] *?", "price=7", 'it\'s "ü" 100%20;#$HOME\\x'])
def test_a_path_is_only_characters(
    small: Path,  # noqa: F811
    blessing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    plain = write_archive(small / "bundle", blessing, tmp_path / "plain")
    place = tmp_path / name
    shutil.copytree(small / "bundle", place / "bundle")
    (place / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    assert write_archive(place / "bundle", blessing, place / "archive") == plain
