"""The champion, the model in production, as a folder: the pipeline writes it, servers and the next blessing read it.

``STATE/champion`` is a link to ``STATE/versions/NAME/``: a release (``ctr.mar``, ``feature_store/``, ``release.json``) with the
unpacked ``bundle/`` and, written last, ``champion.json``. Replacing the link is atomic, so a kill at any moment leaves either
the old or the new champion.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from thinktwice.errors import BundleError, reason
from thinktwice.files import atomic_dir, read_json, write_json
from thinktwice.hashing import BLOCK
from thinktwice.progress import counter
from thinktwice.release.archive import ARCHIVE_FILE as ARCHIVE_FILE
from thinktwice.release.archive import BUNDLE, open_archive
from thinktwice.release.archive import MODEL_NAME as MODEL_NAME
from thinktwice.release.bundle import bundle_hash, copy_bundle, read_manifest
from thinktwice.release.feature_store import FEATURE_STORE
from thinktwice.release.release import Release, ReleasePolicy, read_release, write_release
from thinktwice.release.signing import signing_key

CHAMPION_FILE = "champion.json"
KEEP = 3  # versions kept: the champion, the previous one (a server may still read it), and one more to roll back to


class ChampionInfo(BaseModel):
    """Content of ``champion.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # earlier versions wrote more keys

    model_version: str
    bundle_hash: str
    feature_service: str
    deployed_at: float  # Unix seconds


@dataclass(frozen=True)
class VersionFolder:
    """The folder of a version that can be served. All paths are in it, so a later deployment does not change them."""

    folder: Path

    @property
    def bundle_dir(self) -> Path:
        return self.folder / BUNDLE

    @property
    def archive(self) -> Path:
        return self.folder / ARCHIVE_FILE

    @property
    def feature_store_dir(self) -> Path:
        return self.folder / FEATURE_STORE


@dataclass(frozen=True)
class Champion(VersionFolder):
    """A deployed version."""

    info: ChampionInfo


def read_champion(state_dir: Path | str) -> Champion | None:
    """The champion of a state folder, or None if nothing was ever deployed.

    Raises:
        BundleError: the champion is damaged."""
    link = Path(state_dir) / "champion"
    if not os.path.lexists(link):
        return None
    folder = link.resolve()
    try:
        info = ChampionInfo.model_validate(read_json(folder / CHAMPION_FILE))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"champion {link} cannot be read ({reason(error)}): deploy again, or remove {link}"
        ) from error
    return Champion(folder, info)


def require_champion(state_dir: Path | str, instead: str) -> Champion:
    """The champion of a state folder.

    Args:
        instead: the command-line option that can be used instead.

    Raises:
        BundleError: nothing was ever deployed, or the champion is damaged.
    """
    champion = read_champion(state_dir)
    if champion is None:
        raise BundleError(f"{state_dir} contains no champion: run 'thinktwice pipeline run' first, or set {instead}")
    return champion


def verify_archive(champion: Champion) -> Path:
    """The archive of a champion, checked against the deployed release, since a truncated one would fail deep inside the server.

    Raises:
        BundleError: the archive is missing, differs, or is of an earlier version.
    """
    accepted = read_release(champion.folder, ReleasePolicy(), ())
    try:
        with open_archive(champion.archive, None if accepted is None else accepted.release.archive):
            return champion.archive
    except BundleError as error:
        raise BundleError(f"{error}; or deploy again with `thinktwice pipeline run`") from error


def install_champion(
    state_dir: Path | str, *, bundle_dir: Path | str, archive: Path | str, feature_store_dir: Path | str
) -> Champion:
    """Copy a version into the state folder, describe it as a release and make it the champion.

    The release is signed if the environment names a key. After concurrent calls, one of them is the champion.

    Raises:
        BundleError: the bundle or the archive is damaged, or ``champion`` in the state folder is not a link. FeatureStoreError:
        the feature store contains something that is not permitted.
    """
    state = Path(state_dir)
    link = state / "champion"
    if link.exists() and not link.is_symlink():
        raise BundleError(f"{link} is not a link, it was not written by a deployment: move it away and deploy again")
    manifest = read_manifest(bundle_dir)
    versions = state / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    info = ChampionInfo(
        model_version=manifest.model_version,
        bundle_hash=bundle_hash(bundle_dir),
        feature_service=manifest.feature_service,
        deployed_at=time.time(),
    )
    folder = versions / f"{_next_number(versions):06d}-{info.bundle_hash[:12]}-{os.getpid()}"
    with atomic_dir(folder) as temporary:
        copy_bundle(bundle_dir, temporary / BUNDLE)
        shutil.copyfile(archive, temporary / ARCHIVE_FILE)
        _copy_store(Path(feature_store_dir), temporary / FEATURE_STORE)
        write_release(temporary, signing_key(), before=_release_before(link), bundle_checked=True)
        write_json(temporary / CHAMPION_FILE, info.model_dump())
    _point(link, Path("versions") / folder.name)
    _remove_old(versions, link.resolve().name)
    return Champion(folder.resolve(), info)


def _copy_store(source: Path, target: Path) -> None:
    """Copy a feature store, and report how many of its bytes are copied."""
    total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    advance = counter(stage="deploy", total=total, label="copy of the feature store")

    def copy(source: str, target: str) -> None:
        with open(source, "rb") as file, open(target, "wb") as out:
            while block := file.read(BLOCK):
                out.write(block)
                advance(len(block))
        shutil.copystat(source, target)

    shutil.copytree(source, target, copy_function=copy)


def _release_before(link: Path) -> Release | None:
    if not os.path.lexists(link):
        return None
    try:
        accepted = read_release(link.resolve(), ReleasePolicy(), ())
    except BundleError:  # a damaged release is about to be replaced
        return None
    return None if accepted is None else accepted.release


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".champion.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)


def _numbered(versions: Path) -> list[tuple[int, Path]]:
    matches = [(re.match(r"(\d{6,})-", path.name), path) for path in versions.iterdir()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def _next_number(versions: Path) -> int:
    return max((number for number, _ in _numbered(versions)), default=0) + 1


def _remove_old(versions: Path, current: str) -> None:
    for _, path in _numbered(versions)[:-KEEP]:
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)
