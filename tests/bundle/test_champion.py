"""The champion changes in one step: whatever moment a deployment is killed at, there is the old one or the new."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thinktwice.bundle import bundle_hash, verify_bundle
from thinktwice.champion import KEEP, Champion, install_champion, read_champion, verify_archive
from thinktwice.errors import BundleError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "feature_store.json").write_text("{}")
    (tmp_path / "ctr.mar").write_bytes(b"first")
    return tmp_path / "ctr.mar"


def install(small: Path, archive: Path) -> Champion:
    return install_champion(
        archive.parent / "state",
        bundle_dir=small / "bundle",
        archive=archive,
        feature_store_dir=archive.parent / "store",
    )


def test_the_first_champion(small: Path, archive: Path) -> None:
    state = archive.parent / "state"
    assert read_champion(state) is None
    install(small, archive)
    found = read_champion(state)
    assert found is not None
    assert found.info.bundle_hash == bundle_hash(small / "bundle")
    assert found.archive.read_bytes() == b"first"
    assert (found.feature_store_dir / "feature_store.json").is_file()
    # The pipeline's next blessing reads it under this path.
    assert verify_bundle(state / "champion" / "bundle").model_version == found.info.model_version


def test_a_server_keeps_the_version_it_started_with(small: Path, archive: Path) -> None:
    state = archive.parent / "state"
    install(small, archive)
    before = read_champion(state)
    archive.write_bytes(b"second")
    install(small, archive)
    after = read_champion(state)
    assert before is not None and after is not None
    assert (before.archive.read_bytes(), after.archive.read_bytes()) == (b"first", b"second")


def test_old_versions_go(small: Path, archive: Path) -> None:
    for number in range(KEEP + 2):
        archive.write_bytes(str(number).encode())
        last = install(small, archive)
    state = archive.parent / "state"
    assert len(list((state / "versions").iterdir())) == KEEP
    found = read_champion(state)
    assert found is not None and found.folder == last.folder
    assert sorted(p.name for p in state.iterdir()) == ["champion", "versions"]


@pytest.mark.parametrize("moment", ["copyfile", "copytree", "symlink_to", "replace"])
def test_a_kill_leaves_the_old_one(small: Path, archive: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = archive.parent / "state"
    install(small, archive)
    archive.write_bytes(b"second")
    with monkeypatch.context() as patch:
        _kill_at(patch, moment)
        with pytest.raises(KeyboardInterrupt):
            install(small, archive)
    found = read_champion(state)
    assert found is not None and found.archive.read_bytes() == b"first"
    install(small, archive)  # what the killed one left does not stand in the way
    found = read_champion(state)
    assert found is not None and found.archive.read_bytes() == b"second"


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

        patch.setattr("thinktwice.champion.os.replace", replace)
    else:
        patch.setattr(f"thinktwice.champion.shutil.{moment}", killed)


def test_a_damaged_bundle_is_not_deployed(small: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        install_champion(
            tmp_path / "state", bundle_dir=tmp_path, archive=archive, feature_store_dir=archive.parent / "store"
        )
    assert read_champion(tmp_path / "state") is None


def test_a_strange_champion_is_not_touched(small: Path, archive: Path) -> None:
    state = archive.parent / "state"
    (state / "champion").mkdir(parents=True)
    with pytest.raises(BundleError, match="is no link"):
        install(small, archive)
    with pytest.raises(BundleError, match="cannot be read"):
        read_champion(state)


def test_a_cut_archive_is_named_before_a_server_starts(small: Path, archive: Path) -> None:
    champion = install(small, archive)
    assert verify_archive(champion) == champion.archive
    champion.archive.write_bytes(b"fir")
    for damage in (r"is not the one that was deployed", r"cannot be read \(No such file"):
        with pytest.raises(BundleError, match=damage) as caught:
            verify_archive(champion)
        assert str(champion.archive) in str(caught.value)
        assert str(caught.value).endswith("deploy again with `thinktwice pipeline run`")
        champion.archive.unlink(missing_ok=True)
