"""The small model, and one signed release of it, for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.components.deployed import make_store
from tests.serving.releases import pack
from tests.serving.small import small
from thinktwice.release.champion import Champion, install_champion
from thinktwice.release.signing import SIGNING_KEY, make_keys

__all__ = ["small"]

Keys = tuple[Path, Path]  # private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def packed(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``archive/ctr.mar`` and ``store/``."""
    folder = tmp_path_factory.mktemp("packed")
    pack(small / "bundle", folder)
    make_store(folder / "store")
    (folder / "store" / "registry.db").write_bytes(b"a registry")
    return folder


@pytest.fixture(scope="module")
def signed(small: Path, packed: Path, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Champion:
    """A signed champion; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SIGNING_KEY, str(keys[0]))
        return install(small, packed, tmp_path_factory.mktemp("state"))


@pytest.fixture
def release(signed: Champion, tmp_path: Path) -> Path:
    """A copy of the signed release, to be changed."""
    shutil.copytree(signed.folder, tmp_path / "release")
    return tmp_path / "release"


def install(small: Path, packed: Path, state: Path) -> Champion:
    return install_champion(
        state,
        bundle_dir=small / "bundle",
        archive=packed / "archive" / "ctr.mar",
        feature_store_dir=packed / "store",
    )
