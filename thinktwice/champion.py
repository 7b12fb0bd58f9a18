"""The model in production, as a folder: the pipeline puts it there, a server and the next blessing read it.

``STATE/champion`` is a link to ``STATE/versions/NAME/`` with ``bundle/``, ``ctr.mar``, ``feature_store/`` and, written
last, ``champion.json``. Replacing the link is one atomic step, so a kill at any moment leaves the old champion or the new.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from thinktwice.errors import BundleError
from thinktwice.files import atomic_dir, read_json, sha256_file, write_json

MODEL_NAME = "ctr"
ARCHIVE_FILE = f"{MODEL_NAME}.mar"
CHAMPION_FILE = "champion.json"
KEEP = 3  # versions kept: the champion, the one before (a server may still read it), and one more to go back to


class ChampionInfo(BaseModel):
    """Content of ``champion.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_version: str
    bundle_hash: str
    archive_sha256: str
    feature_service: str
    deployed_at: float  # Unix seconds


@dataclass(frozen=True)
class Champion:
    """A deployed version. All paths lie in the version's own folder, so a later deployment does not move them."""

    folder: Path
    info: ChampionInfo

    @property
    def bundle_dir(self) -> Path:
        return self.folder / "bundle"

    @property
    def archive(self) -> Path:
        return self.folder / ARCHIVE_FILE

    @property
    def feature_store_dir(self) -> Path:
        return self.folder / "feature_store"


def read_champion(state_dir: Path | str) -> Champion | None:
    """The champion of a state folder, or None when nothing was ever deployed.

    Raises:
        BundleError: what lies there is damaged.
    """
    link = Path(state_dir) / "champion"
    if not os.path.lexists(link):
        return None
    folder = link.resolve()
    try:
        info = ChampionInfo.model_validate(read_json(folder / CHAMPION_FILE))
    except (OSError, ValueError, ValidationError) as error:
        raise BundleError(f"champion {link} cannot be read ({error}): deploy again, or remove {link}") from error
    return Champion(folder, info)


def require_champion(state_dir: Path | str, instead: str) -> Champion:
    """The champion of a state folder.

    Args:
        instead: the option of the command line that makes it unnecessary.

    Raises:
        BundleError: nothing was ever deployed, or what lies there is damaged.
    """
    champion = read_champion(state_dir)
    if champion is None:
        raise BundleError(f"{state_dir} holds no champion: run 'thinktwice pipeline run' first, or give {instead}")
    return champion


def verify_archive(champion: Champion) -> Path:
    """The archive of a champion, after a check that it is whole: a cut one fails deep within the server.

    Raises:
        BundleError: the archive is missing, or not the one that was deployed.
    """
    try:
        found = sha256_file(champion.archive)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise BundleError(
            f"archive {champion.archive} cannot be read ({reason}): deploy again with `thinktwice pipeline run`"
        ) from error
    if found != champion.info.archive_sha256:
        raise BundleError(
            f"archive {champion.archive} is not the one that was deployed (SHA-256 {found[:12]} instead of "
            f"{champion.info.archive_sha256[:12]}): deploy again with `thinktwice pipeline run`"
        )
    return champion.archive


def install_champion(
    state_dir: Path | str, *, bundle_dir: Path | str, archive: Path | str, feature_store_dir: Path | str
) -> Champion:
    """Copy a version into the state folder and make it the champion. Concurrent calls end with one of them on top.

    Raises:
        BundleError: the bundle is damaged, or the state folder holds a ``champion`` that is no link.
    """
    # The bundle brings torch with it, which a reader of the champion does not need.
    from thinktwice.bundle import bundle_hash, verify_bundle

    state = Path(state_dir)
    link = state / "champion"
    if link.exists() and not link.is_symlink():
        raise BundleError(f"{link} is no link, it was not written by a deployment: move it away and deploy again")
    manifest = verify_bundle(bundle_dir)
    versions = state / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    info = ChampionInfo(
        model_version=manifest.model_version,
        bundle_hash=bundle_hash(bundle_dir),
        archive_sha256=sha256_file(archive),
        feature_service=manifest.feature_service,
        deployed_at=time.time(),
    )
    folder = versions / f"{_next_number(versions):06d}-{info.bundle_hash[:12]}-{os.getpid()}"
    with atomic_dir(folder) as temporary:
        shutil.copytree(bundle_dir, temporary / "bundle")
        shutil.copyfile(archive, temporary / ARCHIVE_FILE)
        _take_signature(temporary / ARCHIVE_FILE, temporary / "bundle")
        shutil.copytree(feature_store_dir, temporary / "feature_store")
        write_json(temporary / CHAMPION_FILE, info.model_dump())
    _point(link, Path("versions") / folder.name)
    _forget_old(versions, link.resolve().name)
    return Champion(folder.resolve(), info)


def _take_signature(archive: Path, bundle: Path) -> None:
    """Packaging signs the bundle inside the archive; the folder beside it gets the same signature."""
    from thinktwice.bundle import SIGNATURE_FILE

    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as content:
        if (inside := f"bundle/{SIGNATURE_FILE}") in content.namelist():
            (bundle / SIGNATURE_FILE).write_bytes(content.read(inside))


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".champion.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, link)


def _numbered(versions: Path) -> list[tuple[int, Path]]:
    found = [(re.match(r"(\d{6,})-", path.name), path) for path in versions.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def _next_number(versions: Path) -> int:
    return max((number for number, _ in _numbered(versions)), default=0) + 1


def _forget_old(versions: Path, current: str) -> None:
    for _, path in _numbered(versions)[:-KEEP]:
        if path.name != current:
            shutil.rmtree(path, ignore_errors=True)
