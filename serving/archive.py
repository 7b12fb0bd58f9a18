"""The bundle inside a TorchServe archive, for a server that does not unpack archives by itself."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from thinktwice.errors import BundleError

INSIDE = "bundle/"
MOST_BYTES = 64 << 30  # of all files together; more is no bundle


def extract_bundle(archive: Path, folder: Path) -> Path:
    """Unpack ``bundle/`` of an archive into ``folder``; returns the bundle's folder.

    Raises:
        BundleError: the archive is missing, is none, holds no bundle, or holds a path that leads out of it.
    """
    try:
        with zipfile.ZipFile(archive) as found:
            names = [name for name in found.namelist() if name.startswith(INSIDE) and not name.endswith("/")]
            if not names:
                raise BundleError(f"archive {archive} holds no bundle: package the model again")
            for name in names:
                if ".." in PurePosixPath(name).parts or "\\" in name:
                    raise BundleError(f"archive {archive} holds the path {name!r}: get the archive again")
            if sum(found.getinfo(name).file_size for name in names) > MOST_BYTES:
                raise BundleError(f"archive {archive} unpacks to more than {MOST_BYTES} bytes: get the archive again")
            for name in names:
                found.extract(name, folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"archive {archive} cannot be read ({error}): get the archive again") from error
    return folder / INSIDE.rstrip("/")
