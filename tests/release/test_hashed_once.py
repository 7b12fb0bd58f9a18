"""Within one process no file of a bundle is read twice for its hash, whatever is done with the bundle."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import pytest

from components.deployment.deploy.deployment import deploy_model
from components.deployment.package.archive import write_archive
from tests.serving.small import bless
from thinktwice import hashing
from thinktwice.errors import BundleError
from thinktwice.release.bundle import bundle_hash, copy_bundle, load_bundle, read_manifest, verify_bundle
from thinktwice.release.champion import install_champion
from thinktwice.release.release import ReleasePolicy, stage

Reads = Counter[str]


@pytest.fixture
def reads(small: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """How often the content of a file of the bundle was hashed, by its hash: a copy counts as the file."""
    known = {entry.sha256: name for name, entry in read_manifest(small / "bundle").files.items()}
    counts: Reads = Counter()
    real = hashing._digest

    def counted(file: BufferedReader, size: int, copy: object) -> str:
        digest = real(file, size, copy)  # type: ignore[arg-type]
        counts[known.get(digest, "other")] += 1
        return digest

    monkeypatch.setattr(hashing, "_digest", counted)
    return counts


def of_the_bundle(reads: Reads, bundle: Path) -> set[int]:
    return {reads[name] for name in read_manifest(bundle).files}


def test_verify_counts_what_it_reads(small: Path, reads: Reads) -> None:
    verify_bundle(small / "bundle")
    assert of_the_bundle(reads, small / "bundle") == {1}
    verify_bundle(small / "bundle")
    assert of_the_bundle(reads, small / "bundle") == {2}, "the counter can fail"


def test_package(small: Path, tmp_path: Path, reads: Reads) -> None:
    write_archive(small / "bundle", bless(tmp_path / "blessing", bundle_hash(small / "bundle")), tmp_path / "out")
    assert of_the_bundle(reads, small / "bundle") == {1}


@pytest.mark.parametrize("target", ["local", "manifest"])
def test_deploy(
    small: Path, packed: Path, tmp_path: Path, reads: Reads, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.deployment.deploy.deployment.ensure_online", lambda folder: None)
    deploy_model(
        packed / "archive",
        small / "bundle",
        packed / "store",
        bless(tmp_path / "blessing", bundle_hash(small / "bundle")),
        target=target,
        state_dir=tmp_path / "state",
        out_dir=tmp_path / "out",
    )
    assert of_the_bundle(reads, small / "bundle") == {1}


def test_install(small: Path, packed: Path, tmp_path: Path, reads: Reads) -> None:
    found = install_champion(
        tmp_path / "state",
        bundle_dir=small / "bundle",
        archive=packed / "archive" / "ctr.mar",
        feature_store_dir=packed / "store",
    )
    assert of_the_bundle(reads, small / "bundle") == {1}
    verify_bundle(found.bundle_dir)


@pytest.mark.parametrize("model", ["bundle", "ctr.mar"])
def test_serve(release: Path, small: Path, tmp_path: Path, reads: Reads, model: str) -> None:
    """An archive is checked as it is unpacked, by its own reader."""
    staged = stage(release / model, release / "feature_store", tmp_path / "ctr", ReleasePolicy(), ())
    load_bundle(staged.bundle, staged.checked)
    assert of_the_bundle(reads, small / "bundle") == ({1} if model == "bundle" else {0})


def test_a_copy_is_what_was_hashed(small: Path, tmp_path: Path) -> None:
    copy_bundle(small / "bundle", tmp_path / "copy")
    assert bundle_hash(tmp_path / "copy") == bundle_hash(small / "bundle")
    verify_bundle(tmp_path / "copy")
    first = next(iter(read_manifest(small / "bundle").files))
    for number, spoil in enumerate(SPOILED):
        shutil.copytree(small / "bundle", tmp_path / f"bad{number}")
        spoil(tmp_path / f"bad{number}" / first)
        with pytest.raises(BundleError, match=first):
            copy_bundle(tmp_path / f"bad{number}", tmp_path / f"out{number}")
    extra = tmp_path / "extra"
    shutil.copytree(small / "bundle", extra)
    (extra / "more").write_bytes(b"x")
    with pytest.raises(BundleError, match="more is not in the manifest"):
        copy_bundle(extra, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is copied before the names are checked"


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


SPOILED: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x00"),
    lambda path: path.write_bytes(path.read_bytes() + b"x"),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
    _link,
]
