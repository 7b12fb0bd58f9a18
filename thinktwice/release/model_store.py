"""Model versions in a store (``s3://`` or a folder): ``FOLDER/VERSION/``, which KServe's ``storageUri`` names.

A version's folder is written once and never changes. ``release.json`` is written first: it lists the hashes of all other files, so of
several writers only one can own the version. The archive is written last: without it a predictor does not start on an incomplete version.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinktwice.errors import BundleError, StorageError, reason
from thinktwice.files import atomic_dir, full_disk_named, parse_json, sha256_file, sha256_text
from thinktwice.hashing import BLOCK
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE
from thinktwice.release.champion import CHAMPION_FILE
from thinktwice.release.feature_store import FEATURE_STORE, ONLINE_FILE, PUSHED, SETTINGS_FILE
from thinktwice.release.release import (
    MAX_RELEASE,
    MAX_SIGNATURE,
    RELEASE_FILE,
    SIGNATURE_FILE,
    Accepted,
    Release,
    ReleasePolicy,
    read_release,
    verify_release,
)
from thinktwice.storage.location import is_remote, is_safe_key, parse_location
from thinktwice.storage.open import open_store
from thinktwice.storage.store import Entry, Store, read_all

#: Content of a champion's folder that a predictor does not need; likewise the tables of the feature store, which are training data.
NOT_SHIPPED = (BUNDLE, CHAMPION_FILE)
TABLES = ".parquet"

State = Literal["complete", "incomplete", "damaged"]


@dataclass(frozen=True)
class StoredVersion:
    """A version in a store.

    Attributes:
        uri: its folder, for a ``storageUri``.
        created: time of the release, ISO 8601; "" unless the description can be read.
        size: bytes of all files.
        signed: whether there is a signature; it is not checked.
    """

    name: str
    uri: str
    created: str
    size: int
    signed: bool
    state: State


def version_folder(model_version: str) -> str:
    """Name of the folder of a version; also a Kubernetes label value: at most 63 allowed characters, different for different versions."""
    allowed = re.sub(r"[^A-Za-z0-9_.-]", "-", model_version).strip("-_.")
    if allowed == model_version and len(model_version) <= 63:
        return model_version
    return f"{allowed[:50].rstrip('-_.')}-{sha256_text(model_version)[:8]}".lstrip("-")


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model version that a predictor reads, by key below the version's folder.

    Args:
        folder: a champion, or ``model/`` of the deploy step.

    Raises:
        BundleError: the archive, the feature store or the description of the release is missing.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        key = path.relative_to(folder)
        if path.is_file() and key.parts[0] not in NOT_SHIPPED and path.suffix != TABLES:
            files[key.as_posix()] = path
    for needed in (ARCHIVE_FILE, f"{FEATURE_STORE}/{SETTINGS_FILE}", RELEASE_FILE):
        if needed not in files:
            raise BundleError(f"{folder} contains no {needed}: use a champion, or the folder model/ of the deploy step")
    return files


def push_model(source: str, to: str) -> tuple[str, list[str]]:
    """Write a model version to ``TO/VERSION/``. A second call completes an interrupted one.

    Args:
        source: folder of the version, or its ``s3://`` location, e.g. in KFP's bucket.
        to: ``s3://BUCKET/FOLDER``, or a folder.

    Returns:
        The URI of the version's folder, and the keys of its files.

    Raises:
        BundleError: the source is not a complete release, or the version's folder has other content.
        StorageError: a location is not valid, or the store does not respond or refuses the request.
    """
    if is_remote(to):
        parse_location(to)  # before anything is read
    with tempfile.TemporaryDirectory(prefix="thinktwice-push-") as scratch:
        folder = Path(source)
        if is_remote(source):
            folder = Path(scratch)
            _fetch_all(source, folder)
        files = model_files(folder)
        name = version_folder(verify_release(folder).release.model_version)
        with open_store(f"{to.rstrip('/')}/{name}") as store:
            present = {entry.key for entry in store.entries()}
            if extra := sorted(present - set(files)):
                raise BundleError(
                    f"{store.uri} contains {extra[0]}, which is not a file of this model: a version's folder never changes, so use another "
                    "folder or remove that file"
                )
            for key in sorted(files, key=_order):
                _put(store, key, files[key], key in present)
            return store.uri, sorted(files)


def _order(key: str) -> tuple[bool, bool, str]:
    """The description claims the version, so it comes first; the archive is last."""
    return key != RELEASE_FILE, key == ARCHIVE_FILE, key


def _put(store: Store, key: str, path: Path, present: bool) -> None:
    """Write one file unless it exists; an existing one must be identical."""
    if present or not store.put_if_absent(key, path):
        with store.open(key) as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256_file(path)
        if not same:
            raise BundleError(
                f"{store.uri}{key} exists and differs from {path}: a version's folder never changes, so use another folder or "
                "remove that version"
            )


def pull_model(source: str, to: Path, trusted: Sequence[Path] = ()) -> Release:
    """Copy a version from a store to the folder ``to``, verified before it appears there.

    Only files that the description names are copied. With trusted keys, the signature is checked before anything else is read.

    Args:
        source: ``s3://BUCKET/FOLDER/VERSION``, or a folder.
        to: folder to create. If it already contains this release, it is verified and left as it is.
        trusted: public keys.

    Raises:
        BundleError: the version is incomplete, damaged or not signed as required, or ``to`` has other content.
        StorageError: the location is not valid, or the store does not respond or refuses the request.
    """
    with open_store(source) as store:
        present = {entry.key: entry for entry in store.entries()}
        if RELEASE_FILE not in present:
            raise BundleError(
                f"{store.uri} contains no {RELEASE_FILE}: use the folder of a version, as `thinktwice bundle list` shows it"
            )
        if to.exists():
            with tempfile.TemporaryDirectory(prefix="thinktwice-pull-") as scratch, _named(store.uri, Path(scratch)):
                accepted = _pull_description(store, present, Path(scratch), trusted)
            _check_same(to, accepted, store.uri, trusted)
            return accepted.release
        with atomic_dir(to) as folder, _named(store.uri, folder):
            release = _pull_description(store, present, folder, trusted).release
            for key in shipped_files(release, set(present)):
                _pull_file(store, key, present.get(key), expected_size(release, key), folder)
            return verify_release(folder, trusted=trusted).release


def _pull_description(store: Store, present: dict[str, Entry], folder: Path, trusted: Sequence[Path]) -> Accepted:
    for key, most in ((RELEASE_FILE, MAX_RELEASE), (SIGNATURE_FILE, MAX_SIGNATURE)):
        if key in present:
            (folder / key).write_bytes(read_all(store, key, most))
    accepted = read_release(folder, ReleasePolicy(), trusted)
    assert accepted is not None  # the description was just written
    return accepted


def _pull_file(store: Store, key: str, entry: Entry | None, expected: int | None, folder: Path) -> None:
    if entry is None:
        raise BundleError(
            f"{store.uri} contains no {key}: the upload was not finished, run `thinktwice bundle push` again"
        )
    if expected not in (None, entry.size):
        raise BundleError(
            f"{store.uri}{key} has {entry.size} bytes instead of the {expected} of its release: remove that version and push it again"
        )
    _fetch(store, key, folder / key)


@contextmanager
def _named(uri: str, folder: Path) -> Iterator[None]:
    """Messages about a temporary folder name the location that its files come from."""
    try:
        yield
    except BundleError as error:
        raise BundleError(str(error).replace(str(folder), uri.rstrip("/"))) from error


def _check_same(folder: Path, accepted: Accepted, uri: str, trusted: Sequence[Path]) -> None:
    path = folder / RELEASE_FILE
    if not path.is_file() or path.read_bytes() != accepted.content:
        raise BundleError(f"{folder} exists and is not the release of {uri}: use another folder, or remove it")
    verify_release(folder, trusted=trusted)


def shipped_files(release: Release, present: set[str]) -> list[str]:
    """Keys of the files that a release names, without the tables of the feature store unless they are ``present``."""
    names = [f"{FEATURE_STORE}/{name}" for name in release.feature_store or {}]
    return [ARCHIVE_FILE, *(key for key in sorted(names) if not key.endswith(TABLES) or key in present)]


def expected_size(release: Release, key: str) -> int | None:
    """Size of a file in bytes; None for online values that feedback may have changed after the release was written."""
    if key == ARCHIVE_FILE:
        return release.archive.size
    name, files = key.removeprefix(f"{FEATURE_STORE}/"), release.feature_store or {}
    return None if name == ONLINE_FILE and PUSHED in files else files[name].size


def list_versions(where: str) -> list[StoredVersion]:
    """All versions below a folder, the newest first.

    Raises:
        StorageError: the location is not valid, or the store does not respond or refuses the request.
    """
    found = []
    with open_store(where) as store:
        for name in store.folders():
            files = {entry.key.removeprefix(f"{name}/"): entry.size for entry in store.entries(f"{name}/")}
            if RELEASE_FILE not in files and ARCHIVE_FILE not in files:
                continue  # not a model
            created, state = _described(store, name, files)
            size, signed = sum(files.values()), SIGNATURE_FILE in files
            found.append(StoredVersion(name, f"{store.uri}{name}/", created, size, signed, state))
    return sorted(found, key=lambda version: (version.created, version.name), reverse=True)


def _described(store: Store, name: str, files: dict[str, int]) -> tuple[str, State]:
    """Time of a version, and whether all its files are there with their sizes."""
    if RELEASE_FILE not in files:
        return "", "damaged"
    try:
        release = Release.model_validate(parse_json(read_all(store, f"{name}/{RELEASE_FILE}", MAX_RELEASE)))
    except (StorageError, ValueError):
        return "", "damaged"
    needed = shipped_files(release, set(files))
    if not set(needed) <= set(files):
        return release.created, "incomplete"
    sizes = {key: expected_size(release, key) for key in needed}
    whole = all(size is None or size == files[key] for key, size in sizes.items())
    return release.created, "complete" if whole else "damaged"


def _fetch_all(source: str, folder: Path) -> None:
    with open_store(source) as store:
        keys = [entry.key for entry in store.entries()]
        if not keys:
            raise BundleError(f"{store.uri} contains nothing: use the folder model/ of the deploy step")
        for key in keys:
            if not is_safe_key(key):
                raise BundleError(f"{store.uri} contains the key {key!r}, which is not a file name: use another folder")
            _fetch(store, key, folder / key)


def _fetch(store: Store, key: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with store.open(key) as file, full_disk_named(path), path.open("wb") as target:
            shutil.copyfileobj(file, target, BLOCK)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({reason(error)}): check the folder and its rights") from error
