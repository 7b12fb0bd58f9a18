"""The release: one signed unit of deployment, the archive with its bundle and the feature store next to it.

A release is a folder with ``ctr.mar`` and, for a model that looks up features, ``feature_store/``. The pipeline's deploy step
writes it and a predictor mounts it. ``release.json`` lists all files by hash and ``release-signature.json`` signs that file. A
server verifies a release before it unpacks or starts anything, and then uses a private copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, field_validator

from thinktwice.errors import BundleError, FeatureStoreError, reason
from thinktwice.files import atomic_file, json_bytes, parse_json
from thinktwice.frozen import Frozen
from thinktwice.hashing import FileEntry, Sha256, check_file, check_folder, read_plain
from thinktwice.progress import track
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE, HANDLER, Archive, open_archive
from thinktwice.release.bundle import Manifest, bundle_hash, copy_bundle, read_manifest, verify_bundle
from thinktwice.release.feature_store import (
    DATA,
    FEATURE_STORE,
    NOT_CONNECTED,
    ONLINE_FILE,
    ONLINE_SIDE_FILES,
    PUSHED,
    SMALL_FILES,
    is_store_file,
    read_settings,
)
from thinktwice.release.signing import TRUSTED_KEYS, sign, verify_signature

RELEASE_FILE = "release.json"
SIGNATURE_FILE = "release-signature.json"
MAX_RELEASE, MAX_SIGNATURE = 1 << 20, 4096  # bytes
FORMAT = 1
FIX = "get the release again, or deploy again"
REDIS_VALUES = "the values in Redis"


class Release(Frozen):
    """Content of ``release.json``."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT, strict=True)] = FORMAT
    created: str  # time of writing, ISO 8601
    model_version: str
    feature_service: str
    bundle: Sha256  # of the bundle's manifest, which lists its files
    archive: FileEntry
    torchserve: dict[str, FileEntry]  # TorchServe's manifest and settings in the archive
    feature_store: dict[str, FileEntry] | None  # by path within it, tables included; None if a release has none
    not_covered: tuple[str, ...]  # other served files, which may change after the deployment

    @field_validator("feature_store")
    @classmethod
    def _known_names(cls, value: dict[str, FileEntry] | None) -> dict[str, FileEntry] | None:
        if unknown := sorted(name for name in value or () if not is_store_file(name)):
            raise ValueError(f"{unknown[0]!r} is not a file of a feature store")
        return value

    @field_validator("created")
    @classmethod
    def _a_time(cls, value: str) -> str:
        if datetime.fromisoformat(value).tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value


class ReleasePolicy(Frozen):
    """Conditions on releases, in addition to a trusted signature."""

    oldest: AwareDatetime | None = None  # releases written before are refused, which prevents a downgrade
    pinned: tuple[Sha256, ...] = ()  # hashes of releases or of bundles; all others are refused


@dataclass(frozen=True)
class Accepted:
    """A release whose description is accepted; its files have yet to be verified.

    Attributes:
        hash: SHA-256 of ``release.json``.
        key_id: of the key that signed it; "" if no signature was required.
    """

    folder: Path
    release: Release
    hash: str
    key_id: str
    content: bytes
    signature: bytes

    @property
    def what(self) -> str:
        """Its name in messages."""
        return f"release {self.folder}"


@dataclass(frozen=True)
class Staged:
    """A model in a private folder, ready to be served: verified, and no longer changeable from outside.

    TorchServe loads the folder as a model.
    """

    folder: Path
    bundle: Path
    feature_store: Path | None
    checked: Manifest | None = None  # of a bundle whose files were hashed while they were copied to ``folder``


def write_release(
    folder: Path,
    key: Path | None = None,
    *,
    created: datetime | None = None,
    before: Release | None = None,
    bundle_checked: bool = False,
) -> Release:
    """Describe the files of a folder and sign the description; an existing one is replaced.

    Args:
        folder: with ``ctr.mar``, and optionally ``feature_store/`` and the unpacked ``bundle/``.
        key: file of the private key; None leaves the release without a signature.
        created: default now.
        before: the release to be replaced; if it has the same files, its time is kept.
        bundle_checked: the unpacked bundle was verified when it was copied.

    Raises:
        BundleError: archive and bundle differ or are damaged, or the key is invalid. FeatureStoreError: the feature store
        contains something that is not permitted.
    """
    archive, store = folder / ARCHIVE_FILE, folder / FEATURE_STORE
    with open_archive(archive) as content:
        content.verify()
        manifest, bundle, torchserve = content.manifest, content.bundle_hash, content.torchserve
    if (folder / BUNDLE).is_dir():
        if not bundle_checked:
            verify_bundle(folder / BUNDLE)
        if bundle_hash(folder / BUNDLE) != bundle:
            raise BundleError(f"{folder / BUNDLE} and {archive} contain different bundles: package this bundle")
    files = _store_files(store) if store.is_dir() else None
    uses_redis = bool(files and manifest.feature_service) and _online(store) == "redis"
    release = Release(
        created=(created or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
        model_version=manifest.model_version,
        feature_service=manifest.feature_service,
        bundle=bundle,
        archive=FileEntry.of(archive),
        torchserve=torchserve,
        feature_store=files,
        not_covered=(REDIS_VALUES,) if uses_redis else (),
    )
    if before is not None and created is None and before == release.model_copy(update={"created": before.created}):
        release = before
    data = json_bytes(release.model_dump(mode="json"))
    signature = None if key is None else sign(data, key)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    with atomic_file(folder / RELEASE_FILE) as temporary:
        temporary.write_bytes(data)
    if signature is not None:
        with atomic_file(folder / SIGNATURE_FILE) as temporary:
            temporary.write_bytes(signature)
    return release


def copy_description(source: Path, target: Path) -> None:
    """Copy ``release.json`` and its signature to another folder with the same release."""
    for name in (RELEASE_FILE, SIGNATURE_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _store_files(store: Path) -> dict[str, FileEntry]:
    out = {}
    paths = sorted(store.rglob("*"))
    for path in track(paths, stage="deploy", total=len(paths), label="hashes of the feature store"):
        name = path.relative_to(store).as_posix()
        if (path.is_dir() and not path.is_symlink()) or name in ONLINE_SIDE_FILES:
            continue
        if not is_store_file(name):
            raise FeatureStoreError(f"feature store {store} contains the unknown file {name}: remove it")
        try:
            out[name] = FileEntry.of(path)
        except OSError as error:
            raise FeatureStoreError(
                f"feature store {store}: {name} cannot be read ({reason(error)}): materialize it again"
            ) from error
    return out


def _online(store: Path) -> str:
    """Kind of the online store; the address of a Redis need not be set."""
    return read_settings(store, NOT_CONNECTED).online_store.type


def read_release(folder: Path, policy: ReleasePolicy, trusted: Sequence[Path]) -> Accepted | None:
    """Read the description of a release and decide whether it may be served; its files are not read.

    Args:
        trusted: public keys; with any, a release must be signed by one of them.

    Returns:
        None if the folder has no description and none is required.

    Raises:
        BundleError: there is none and one is required, or it is damaged, not signed as required, too old or not pinned.
    """
    what = f"release {folder}"
    content, signature = b"", b""
    try:
        content = read_plain(folder / RELEASE_FILE, MAX_RELEASE)
        if trusted:
            signature = read_plain(folder / SIGNATURE_FILE, MAX_SIGNATURE)
    except FileNotFoundError:
        if trusted:
            raise BundleError(
                f"{what} is not signed, and {TRUSTED_KEYS} requires a signature: sign it with 'thinktwice release sign', "
                "deploy with THINKTWICE_SIGNING_KEY_FILE set, or get it again"
            ) from None
        if policy != ReleasePolicy():
            raise BundleError(
                f"{what} has no {RELEASE_FILE}, and the settings require a minimum or a pinned release: deploy again"
            ) from None
        return None
    except OSError as error:
        raise BundleError(f"{what} cannot be read ({reason(error)}): {FIX}") from error
    key_id = verify_signature(what, content, signature, trusted) if trusted else ""
    try:
        release = Release.model_validate(parse_json(content))
    except ValueError as error:
        raise BundleError(f"{what}: {RELEASE_FILE} is damaged ({reason(error)}): {FIX}") from error
    accepted = Accepted(folder, release, hashlib.sha256(content).hexdigest(), key_id, content, signature)
    _check_policy(accepted, policy)
    return accepted


def _check_policy(accepted: Accepted, policy: ReleasePolicy) -> None:
    release = accepted.release
    if policy.oldest is not None and datetime.fromisoformat(release.created) < policy.oldest:
        raise BundleError(
            f"{accepted.what} was written at {release.created} and the settings accept none before {policy.oldest.isoformat()}: "
            "serve a newer one, or change release.oldest"
        )
    if policy.pinned and not {accepted.hash, release.bundle} & set(policy.pinned):
        raise BundleError(
            f"{accepted.what} (release {accepted.hash[:12]}, bundle {release.bundle[:12]}) is not one of the pinned ones: "
            "serve a pinned one, or change release.pinned"
        )


def verify_release(folder: Path, policy: ReleasePolicy | None = None, trusted: Sequence[Path] = ()) -> Accepted:
    """Verify a whole release folder: signature, policy, and every file against its hash. Nothing is unpacked.

    Raises:
        BundleError: anything differs; the message names it.
    """
    accepted = read_release(folder, policy or ReleasePolicy(), trusted)
    if accepted is None:
        raise BundleError(
            f"{folder} is not a release (no {RELEASE_FILE}): deploy again, or use 'thinktwice release sign'"
        )
    with open_archive(folder / ARCHIVE_FILE, accepted.release.archive) as content:
        content.verify()
        _check_archive(accepted, content)
    if (folder / BUNDLE).is_dir():
        verify_bundle(folder / BUNDLE)
        _check_bundle(accepted, bundle_hash(folder / BUNDLE), content.manifest)
    if accepted.release.feature_store is not None:
        _check_store(accepted, folder / FEATURE_STORE)
    elif (folder / FEATURE_STORE).exists():
        raise BundleError(f"{accepted.what} does not name its {FEATURE_STORE}/: {FIX}")
    return accepted


def _check_archive(accepted: Accepted, content: Archive) -> None:
    """Check the content again, although the whole archive was hashed: it may have been written to since."""
    _check_bundle(accepted, content.bundle_hash, content.manifest)
    if content.torchserve != accepted.release.torchserve:
        raise BundleError(f"{accepted.what}: TorchServe's files in the archive differ from those it names: {FIX}")


def _check_bundle(accepted: Accepted, bundle: str, manifest: Manifest) -> None:
    release = accepted.release
    if bundle != release.bundle:
        raise BundleError(f"{accepted.what} is of bundle {release.bundle[:12]} and contains {bundle[:12]}: {FIX}")
    if (manifest.model_version, manifest.feature_service) != (release.model_version, release.feature_service):
        raise BundleError(f"{accepted.what} names another version or feature service than its bundle: {FIX}")


def stage(
    model: Path,
    feature_store: Path | None,
    folder: Path,
    policy: ReleasePolicy,
    trusted: Sequence[Path],
    *,
    handler: str = HANDLER,
) -> Staged:
    """Verify a model and copy it to a private folder. The release is next to the model.

    The tables and the online values of a feature store are not copied: they are verified in place and linked.

    Args:
        model: archive, or unpacked bundle folder.
        feature_store: folder; None for a model without one.
        folder: created; only this user can write to its parent.
        handler: module that TorchServe calls.

    Raises:
        BundleError: it is refused; the message says why. FeatureStoreError: the model needs a feature store.
    """
    accepted = read_release(model.parent, policy, trusted)
    folder.mkdir(mode=0o700)
    bundle = folder / BUNDLE
    if model.is_dir():
        if accepted is None:
            return Staged(folder, model, feature_store)
        _check_bundle(accepted, bundle_hash(model), read_manifest(model))
        manifest = copy_bundle(model, bundle)
        _check_bundle(accepted, bundle_hash(bundle), manifest)
    else:
        with open_archive(model, None if accepted is None else accepted.release.archive, handler=handler) as content:
            manifest = content.manifest
            if accepted is not None:
                _check_archive(accepted, content)
            content.unpack(folder)
    if accepted is not None:
        (folder / RELEASE_FILE).write_bytes(accepted.content)
        if accepted.signature:
            (folder / SIGNATURE_FILE).write_bytes(accepted.signature)
    if accepted is None or not manifest.feature_service:
        return Staged(folder, bundle, feature_store, manifest)
    required = bool(trusted) or policy != ReleasePolicy()
    if feature_store is None or accepted.release.feature_store is None:
        if required:
            problem = "is served without a feature store" if feature_store is None else "does not cover a feature store"
            raise BundleError(f"{accepted.what} {problem} and the model needs one: deploy again, or correct the path")
        return Staged(folder, bundle, feature_store, manifest)
    return Staged(folder, bundle, _stage_store(accepted, feature_store, folder / FEATURE_STORE), manifest)


def _check_store(accepted: Accepted, store: Path) -> dict[str, FileEntry]:
    """Verify a feature store; returns its files. The tables are for training; a store in a cluster does not contain them."""
    files = accepted.release.feature_store or {}
    if not os.path.lexists(store / DATA):
        files = {name: entry for name, entry in files.items() if not name.startswith(f"{DATA}/")}
    fixed, also = files, frozenset[str]()
    if PUSHED in (accepted.release.feature_store or {}) and ONLINE_FILE in files:
        # The feedback service writes to it; a Redis is not part of a release either.
        fixed = {name: entry for name, entry in files.items() if name != ONLINE_FILE}
        also = ONLINE_SIDE_FILES | {ONLINE_FILE}
    check_folder(f"{accepted.what}, {FEATURE_STORE}", store, fixed, FIX, also=also)
    return files


def _stage_store(accepted: Accepted, store: Path, folder: Path) -> Path:
    what = f"{accepted.what}, {FEATURE_STORE}"
    files = _check_store(accepted, store)
    folder.mkdir(mode=0o700)
    for name, entry in files.items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if name in SMALL_FILES:
            shutil.copyfile(store / name, target, follow_symlinks=False)
            check_file(what, name, target, entry, FIX)
        else:
            target.symlink_to((store / name).resolve())
    return folder


def open_staged(folder: Path, policy: ReleasePolicy, trusted: Sequence[Path]) -> Staged:
    """Open a staged folder in a worker of a server: the same checks again, except of tables and online values.

    Raises:
        BundleError: it is not what :func:`stage` wrote, and a release is required.
    """
    accepted = read_release(folder, policy, trusted)
    bundle, store = folder / BUNDLE, folder / FEATURE_STORE
    if accepted is not None:
        _check_bundle(accepted, bundle_hash(bundle), read_manifest(bundle))
        for name, entry in (accepted.release.feature_store or {}).items():
            if store.is_dir() and name in SMALL_FILES:
                check_file(accepted.what, name, store / name, entry, FIX)
        required = bool(trusted) or policy != ReleasePolicy()
        if required and accepted.release.feature_service and not store.is_dir():
            raise BundleError(f"{accepted.what} is served without its feature store: start the server again")
    return Staged(folder, bundle, store if store.is_dir() else None)
