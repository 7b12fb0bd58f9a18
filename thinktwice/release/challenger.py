"""Challengers: model versions that were packaged for an experiment, beside the champion and never in its place.

``STATE/challengers/HASH/`` is a release like that of a champion, with ``challenger.json`` in place of ``champion.json``. No
server, blessing or deployment reads this folder by itself: only the promotion of an experiment makes a challenger the
champion, as a new version.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.frozen import Frozen
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE
from thinktwice.release.bundle import bundle_hash, copy_bundle, read_manifest
from thinktwice.release.champion import (
    CHAMPION_FILE,
    Champion,
    ChampionInfo,
    VersionFolder,
    install_champion,
    read_champion,
)
from thinktwice.release.feature_store import FEATURE_STORE, ONLINE_FILE, ONLINE_SIDE_FILES, PUSHED
from thinktwice.release.release import write_release
from thinktwice.release.signing import signing_key

CHALLENGERS, CHALLENGER_FILE = "challengers", "challenger.json"
MIN_HASH = 8  # digits of a hash that names a version


class ChallengerInfo(Frozen):
    """Content of ``challenger.json``.

    Attributes:
        mode: test-time mode of the bundle.
        accepted: whether the acceptance test let it ship; false does not keep it from an experiment.
        why: result of that test in one sentence.
        champion: bundle hash of the champion when it was packaged; null if there was none.
    """

    format: int = 1
    model_version: str
    bundle_hash: str
    feature_service: str
    mode: str
    accepted: bool
    why: str
    champion: str | None
    packaged_at: float  # Unix seconds


@dataclass(frozen=True)
class Version(VersionFolder):
    """A version that can be served: the champion, an earlier one, or a challenger (``challenger`` is set)."""

    model_version: str
    bundle_hash: str
    feature_service: str
    challenger: ChallengerInfo | None = None


def install_challenger(
    state_dir: Path | str,
    *,
    bundle_dir: Path | str,
    archive: Path | str,
    feature_store_dir: Path | str,
    mode: str,
    accepted: bool,
    why: str,
) -> Version:
    """Copy a version into the state folder as a challenger. A version that is there already is returned unchanged.

    Raises:
        BundleError: the bundle or the archive is damaged, or it is the champion's bundle.
    """
    state = Path(state_dir)
    manifest, digest = read_manifest(bundle_dir), bundle_hash(bundle_dir)
    champion = read_champion(state)
    if champion is not None and champion.info.bundle_hash == digest:
        raise BundleError(
            f"the bundle {digest[:12]} is the champion itself: name it in the experiment, no challenger is needed"
        )
    folder = state / CHALLENGERS / digest[:16]
    if not (folder / CHALLENGER_FILE).is_file():
        info = ChallengerInfo(
            model_version=manifest.model_version,
            bundle_hash=digest,
            feature_service=manifest.feature_service,
            mode=mode,
            accepted=accepted,
            why=why,
            champion=None if champion is None else champion.info.bundle_hash,
            packaged_at=time.time(),
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_dir(folder) as temporary:
            copy_bundle(bundle_dir, temporary / BUNDLE)
            shutil.copyfile(archive, temporary / ARCHIVE_FILE)
            with store_snapshot(Path(feature_store_dir)) as store:
                shutil.copytree(store, temporary / FEATURE_STORE)
            write_release(temporary, signing_key(), bundle_checked=True)
            write_json(temporary / CHALLENGER_FILE, info.model_dump())
    return _challenger(folder)


def versions(state_dir: Path | str) -> list[Version]:
    """All versions of a state folder: earlier champions and the champion, oldest first, then challengers by age.

    Raises:
        BundleError: the description of one is damaged.
    """
    state = Path(state_dir)
    champions = [_deployed(path.parent) for path in sorted((state / "versions").glob(f"*/{CHAMPION_FILE}"))]
    challengers = [_challenger(path.parent) for path in (state / CHALLENGERS).glob(f"*/{CHALLENGER_FILE}")]
    return [*champions, *sorted(challengers, key=lambda v: (v.challenger.packaged_at if v.challenger else 0, v.folder))]


def version_named(state_dir: Path | str, name: str) -> Version:
    """The version of a model version, or of a bundle hash or its first 8 or more digits.

    If the champion's bundle is also there as a challenger, that of the champion: its feature store is the one that is updated.

    Raises:
        BundleError: there is none, or several.
    """
    available = versions(state_dir)
    matches = [
        v
        for v in available
        if v.model_version == name or (len(name) >= MIN_HASH and v.bundle_hash.startswith(name.lower()))
    ]
    hashes = {v.bundle_hash for v in matches}
    if not matches:
        known = ", ".join(dict.fromkeys(v.bundle_hash[:12] for v in available)) or "none"
        raise BundleError(
            f"{state_dir} contains no version {name!r} (there are {known}): `thinktwice bundle versions` lists them"
        )
    if len(hashes) > 1:
        raise BundleError(f"{name!r} names {len(hashes)} versions of {state_dir}: use more digits of the bundle hash")
    champion = read_champion(state_dir)
    served = None if champion is None else champion.folder.resolve()
    return next((version for version in matches if version.folder == served), matches[-1])


def promote(state_dir: Path | str, version: Version, *, store: Path | None = None) -> Champion:
    """Make a version the champion, as a new version. If it is the champion already, nothing changes.

    Args:
        store: feature store to deploy with it; default its own.

    Raises:
        BundleError: see :func:`thinktwice.release.champion.install_champion`.
    """
    current = read_champion(state_dir)
    if current is not None and current.info.bundle_hash == version.bundle_hash:
        return current
    with store_snapshot(store or version.feature_store_dir) as copy:
        return install_champion(
            state_dir, bundle_dir=version.bundle_dir, archive=version.archive, feature_store_dir=copy
        )


@contextmanager
def store_snapshot(store: Path) -> Iterator[Path]:
    """A copy of a feature store while the block runs, byte by byte; of a store that feedback updates a consistent one of its
    online values."""
    with tempfile.TemporaryDirectory(prefix="thinktwice-store-") as scratch:
        target = Path(scratch) / FEATURE_STORE
        pushed = (store / PUSHED).is_file() and (store / ONLINE_FILE).is_file()
        left_out = (ONLINE_FILE, *ONLINE_SIDE_FILES) if pushed else tuple(ONLINE_SIDE_FILES)
        shutil.copytree(store, target, ignore=shutil.ignore_patterns(*left_out))
        if pushed:
            with (
                closing(sqlite3.connect(f"{(store / ONLINE_FILE).resolve().as_uri()}?mode=ro", uri=True)) as source,
                closing(sqlite3.connect(target / ONLINE_FILE)) as copy,
            ):
                source.backup(copy)
        yield target


def _challenger(folder: Path) -> Version:
    try:
        info = ChallengerInfo.model_validate(read_json(folder / CHALLENGER_FILE))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"challenger {folder} cannot be read ({reason(error)}): remove it and package it again"
        ) from error
    return Version(folder.resolve(), info.model_version, info.bundle_hash, info.feature_service, info)


def _deployed(folder: Path) -> Version:
    try:
        info = ChampionInfo.model_validate(read_json(folder / CHAMPION_FILE))
    except (OSError, ValueError) as error:
        raise BundleError(f"version {folder} cannot be read ({reason(error)}): remove it") from error
    return Version(folder.resolve(), info.model_version, info.bundle_hash, info.feature_service)
