"""The champion changes in one step: whatever moment a deployment is killed at, there is the old one or the new."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.components.deployed import make_store
from tests.progress_events import assert_complete, pieces
from tests.serving.releases import pack, rezip
from thinktwice.errors import BundleError
from thinktwice.release.archive import SETTINGS_FILE, open_archive
from thinktwice.release.bundle import bundle_hash, verify_bundle
from thinktwice.release.champion import KEEP, Champion, install_champion, read_champion, verify_archive
from thinktwice.release.release import verify_release, write_release


@pytest.fixture(scope="module")
def packed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(small / "bundle", tmp_path_factory.mktemp("packed"))


@pytest.fixture
def archive(packed: Path, tmp_path: Path) -> Path:
    make_store(tmp_path / "store")
    return made(tmp_path / "ctr.mar", packed, 1)


def made(target: Path, packed: Path, number: int) -> Path:
    """An archive that is told from others of the same bundle by a setting."""
    return rezip(packed, target, lambda files: files.update({SETTINGS_FILE: f"responseTimeout: {number}".encode()}))


def number_of(champion: Champion | None) -> int:
    assert champion is not None
    with open_archive(verify_archive(champion)) as content:
        return content.settings["responseTimeout"]


def install(small: Path, archive: Path) -> Champion:
    return install_champion(
        archive.parent / "state",
        bundle_dir=small / "bundle",
        archive=archive,
        feature_store_dir=archive.parent / "store",
    )


def test_the_first_champion(small: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = archive.parent / "state"
    assert read_champion(state) is None
    monkeypatch.setenv("THINKTWICE_PROGRESS", str(archive.parent / "events"))
    install(small, archive)
    reported = pieces(archive.parent / "events", "deploy")
    assert list(reported) == ["copy of the feature store", "hashes of the feature store"]
    for reports in reported.values():
        assert_complete(reports)
    stored = [p for p in (archive.parent / "store").rglob("*") if p.is_file()]
    assert reported["copy of the feature store"][-1][1] == sum(p.stat().st_size for p in stored)  # bytes
    found = read_champion(state)
    assert found is not None
    assert found.info.bundle_hash == bundle_hash(small / "bundle")
    assert number_of(found) == 1
    assert verify_release(found.folder).release.bundle == found.info.bundle_hash
    assert (found.feature_store_dir / "feature_store.json").is_file()
    # The pipeline's next blessing reads it under this path.
    assert verify_bundle(state / "champion" / "bundle").model_version == found.info.model_version


def test_a_server_keeps_the_version_it_started_with(small: Path, packed: Path, archive: Path) -> None:
    state = archive.parent / "state"
    install(small, archive)
    before = read_champion(state)
    made(archive, packed, 2)
    install(small, archive)
    assert (number_of(before), number_of(read_champion(state))) == (1, 2)


def test_the_same_files_are_the_same_release(small: Path, packed: Path, archive: Path) -> None:
    """Deployed once more, it is no other release: what was uploaded of it stays what it is."""
    first = install(small, archive).folder
    write_release(first, created=datetime(2026, 1, 1, tzinfo=timezone.utc))
    second = install(small, archive).folder
    assert first != second and verify_release(first).hash == verify_release(second).hash
    made(archive, packed, 2)
    assert verify_release(install(small, archive).folder).release.created > "2026-01-02"


def test_old_versions_go(small: Path, archive: Path) -> None:
    for _ in range(KEEP + 2):
        last = install(small, archive)
    state = archive.parent / "state"
    assert len(list((state / "versions").iterdir())) == KEEP
    found = read_champion(state)
    assert found is not None and found.folder == last.folder
    assert sorted(p.name for p in state.iterdir()) == ["champion", "versions"]


@pytest.mark.parametrize("moment", ["copyfile", "copytree", "write_release", "symlink_to", "replace"])
def test_a_kill_leaves_the_old_one(
    small: Path, packed: Path, archive: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = archive.parent / "state"
    install(small, archive)
    made(archive, packed, 2)
    with monkeypatch.context() as patch:
        _kill_at(patch, moment)
        with pytest.raises(KeyboardInterrupt):
            install(small, archive)
    assert number_of(read_champion(state)) == 1
    install(small, archive)  # what the killed one left does not stand in the way
    assert number_of(read_champion(state)) == 2


def _kill_at(patch: pytest.MonkeyPatch, moment: str) -> None:
    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    if moment == "symlink_to":
        patch.setattr(Path, "symlink_to", killed)
    elif moment == "replace":
        real = os.replace

        def replace(source: Path, target: Path) -> None:
            if Path(target).name == "champion":
                raise KeyboardInterrupt
            real(source, target)

        patch.setattr("thinktwice.release.champion.os.replace", replace)
    elif moment == "write_release":
        patch.setattr("thinktwice.release.champion.write_release", killed)
    else:
        patch.setattr(f"thinktwice.release.champion.shutil.{moment}", killed)


def test_a_damaged_bundle_is_not_deployed(small: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        install_champion(
            tmp_path / "state", bundle_dir=tmp_path, archive=archive, feature_store_dir=archive.parent / "store"
        )
    assert read_champion(tmp_path / "state") is None


def test_a_strange_champion_is_not_touched(small: Path, archive: Path) -> None:
    state = archive.parent / "state"
    (state / "champion").mkdir(parents=True)
    with pytest.raises(BundleError, match="is not a link"):
        install(small, archive)
    with pytest.raises(BundleError, match="cannot be read"):
        read_champion(state)


def test_a_cut_archive_is_named_before_a_server_starts(small: Path, archive: Path) -> None:
    champion = install(small, archive)
    assert verify_archive(champion) == champion.archive
    champion.archive.write_bytes(champion.archive.read_bytes()[:-3])
    for damage in (r"bytes instead of the \d+ of its release", r"cannot be read \(No such file"):
        with pytest.raises(BundleError, match=damage) as caught:
            verify_archive(champion)
        assert str(champion.archive) in str(caught.value)
        assert str(caught.value).endswith("deploy again with `thinktwice pipeline run`")
        champion.archive.unlink(missing_ok=True)
