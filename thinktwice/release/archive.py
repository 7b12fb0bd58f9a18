"""The TorchServe archive (``.mar``) of a model: its permitted content, and the checks before anything is unpacked.

An archive contains a bundle, TorchServe's manifest and a few settings, and **no code**: the handler is a module of the
installed package. TorchServe adds the folder of a model to its import path, so any other file in an archive could be imported.

Checks, in this order: the whole file against the hash in the release, the zip's directory against bounds, every name against
the list of permitted names, the bundle's manifest, every size against the manifest. Only then is anything unpacked, and every
file is hashed as it is written. A server receives the unpacked folder, never the archive.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal

import yaml
from pydantic import Field

from thinktwice.errors import BundleError, ResourceError, reason
from thinktwice.files import full_disk_named, json_bytes, parse_json
from thinktwice.frozen import Frozen
from thinktwice.hashing import BLOCK, FileEntry, check_digest, open_plain
from thinktwice.release.bundle import MANIFEST_FILE, MAX_MANIFEST, Manifest, bundle_files, parse_manifest
from thinktwice.strict_yaml import parse_yaml

MODEL_NAME = "ctr"
ARCHIVE_FILE = f"{MODEL_NAME}.mar"
HANDLER = "serving.adapters.torchserve_handler"  # module of the installed package
BUNDLE = "bundle"  # folder within the archive
MAR_MANIFEST = "MAR-INF/MANIFEST.json"
SETTINGS_FILE = "model-config.yaml"
#: Settings of TorchServe that a model may set; only numbers and booleans.
SETTINGS = frozenset(
    {
        "minWorkers",
        "maxWorkers",
        "batchSize",
        "maxBatchDelay",
        "responseTimeout",
        "startupTimeout",
        "torchThreads",
        "jobQueueSize",
        "clientTimeoutInMills",
        "maxRetryTimeoutInSec",
        "useJobTicket",
    }
)
CODE = frozenset(
    [
        ".py",
        ".pyc",
        ".pyd",
        ".pth",
        ".so",
        ".dll",
        ".dylib",
        ".jar",
        ".class",
        ".sh",
        ".whl",
        ".egg",
        ".pkl",
        ".pt",
        ".pth",
        ".bin",
        ".txt",
        ".zip",
        ".mar",
    ]
)

MAX_DIRECTORY = 64 << 10  # bytes of the zip's directory, a hundred times its usual size
MAX_SMALL = 64 << 10  # bytes of TorchServe's manifest, and of the settings
MAX_RATIO = 200  # unpacked bytes per byte of the archive, beyond FREE_BYTES
FREE_BYTES = 256 << 20  # always permitted, because empty count tables compress to almost nothing

FIX = "get the archive again, or package the model again"
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip


class MarModel(Frozen):
    """The model in TorchServe's manifest; no other entries are permitted (envelope, requirements, other files)."""

    modelName: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]
    modelVersion: str
    handler: str
    configFile: Annotated[str, Field(pattern=f"^{SETTINGS_FILE}$")]


class MarManifest(Frozen):
    """Content of ``MAR-INF/MANIFEST.json``."""

    createdOn: str
    runtime: Literal["python"]
    model: MarModel
    archiverVersion: str


@dataclass(frozen=True)
class Archive:
    """An archive with checked names, sizes and manifests, not unpacked.

    Attributes:
        bundle_hash: of the bundle inside.
        manifest: of the bundle.
        torchserve: entries of the two files that are not in the bundle's manifest.
    """

    path: Path
    bundle_hash: str
    manifest: Manifest
    torchserve: dict[str, FileEntry]
    mar_manifest: MarManifest
    settings: dict[str, int]
    _zip: zipfile.ZipFile
    _manifest_bytes: bytes

    def unpack(self, folder: Path) -> None:
        """Write the model folder for TorchServe: ``bundle/`` as in the archive, the other files newly written.

        Args:
            folder: an existing, empty folder that only this user can write to.

        Raises:
            BundleError: a file differs from the manifest of the bundle. ResourceError: there is not enough disk space.
        """
        total = sum(entry.size for entry in self.manifest.files.values())
        if (free := shutil.disk_usage(folder).free) < total:
            raise ResourceError(
                f"archive {self.path} unpacks to {total >> 20} MiB and {folder} has room for {free >> 20} MiB: "
                "free some disk space, or set TMPDIR"
            )
        with full_disk_named(folder):
            for name, data in (
                (MAR_MANIFEST, json_bytes(self.mar_manifest.model_dump())),
                (SETTINGS_FILE, yaml.safe_dump(self.settings).encode()),
                (f"{BUNDLE}/{MANIFEST_FILE}", self._manifest_bytes),
            ):
                with _create(folder / name) as target:
                    target.write(data)
            for name, entry in self.manifest.files.items():
                with _create(folder / BUNDLE / name) as target:
                    self._read(name, entry, target)

    def verify(self) -> None:
        """Check every hash without writing anything.

        Raises:
            BundleError: a file differs from the manifest of the bundle.
        """
        for name, entry in self.manifest.files.items():
            self._read(name, entry, None)

    def _read(self, name: str, entry: FileEntry, target: BinaryIO | None) -> None:
        digest, remaining = hashlib.sha256(), entry.size
        for block in self._blocks(name):
            remaining -= len(block)
            if remaining < 0:
                break
            digest.update(block)
            if target is not None:
                target.write(block)
        if remaining:
            raise BundleError(
                f"archive {self.path}: {name} does not have the {entry.size} bytes of its manifest: {FIX}"
            )
        check_digest(f"archive {self.path}", name, digest.hexdigest(), entry, FIX)

    def _blocks(self, name: str) -> Iterator[bytes]:
        with ExitStack() as stack:
            with _readable(self.path):
                source = stack.enter_context(self._zip.open(f"{BUNDLE}/{name}"))
            while True:
                with _readable(self.path):
                    block = source.read(BLOCK)
                if not block:
                    return
                yield block


@contextmanager
def open_archive(path: Path, expected: FileEntry | None = None, *, handler: str = HANDLER) -> Iterator[Archive]:
    """Check an archive without unpacking it.

    Args:
        expected: the file's entry in a release; None to skip that check.
        handler: module that must be named as the handler.

    Raises:
        BundleError: it is missing or damaged, contains code or anything other than a bundle, or was made by an earlier version.
    """
    with ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(open_plain(path.resolve()))
            if expected is not None:
                _check_whole(path, file, expected)
            _check_directory(path, file)
            content = stack.enter_context(zipfile.ZipFile(file))
            archive = _checked(path, content, os.fstat(file.fileno()).st_size, handler)
        yield archive


def _check_whole(path: Path, file: BufferedReader, expected: FileEntry) -> None:
    size = os.fstat(file.fileno()).st_size
    if size != expected.size:
        raise BundleError(f"archive {path} has {size} bytes instead of the {expected.size} of its release: {FIX}")
    check_digest("its release", f"archive {path}", hashlib.file_digest(file, "sha256").hexdigest(), expected, FIX)


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Bound the zip's directory before :mod:`zipfile` reads all of it. Archives have no comment, so its end is at a fixed
    position."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 98, 0))
    end = file.read()
    if len(end) < 22 or end[-22:-18] != b"PK\5\6":
        raise BundleError(f"archive {path} is not a zip file, or it is truncated: {FIX}")
    length = int.from_bytes(end[-10:-6], "little")
    if end[-42:-38] == b"PK\6\7":  # zip64
        if len(end) < 98 or end[:4] != b"PK\6\6":
            raise BundleError(f"archive {path} ends in an unusual way: {FIX}")
        length = int.from_bytes(end[40:48], "little")
    if length > MAX_DIRECTORY:
        raise BundleError(f"archive {path} lists too many files ({length} bytes of names): {FIX}")


def _checked(path: Path, content: zipfile.ZipFile, size: int, handler: str) -> Archive:
    entries = _named(path, content)
    if not {MAR_MANIFEST, SETTINGS_FILE, f"{BUNDLE}/{MANIFEST_FILE}"} <= entries.keys():
        raise BundleError(f"archive {path} does not contain a bundle with {MAR_MANIFEST} and {SETTINGS_FILE}: {FIX}")
    data = _small(path, content, entries[f"{BUNDLE}/{MANIFEST_FILE}"], MAX_MANIFEST)
    manifest = parse_manifest(data, f"archive {path}")
    expected_sizes = {f"{BUNDLE}/{name}": entry.size for name, entry in manifest.files.items()}
    if missing := sorted(expected_sizes.keys() - entries.keys()):
        raise BundleError(f"archive {path}: {missing[0]} is missing: {FIX}")
    if unexpected := sorted(
        entries.keys() - expected_sizes.keys() - {MAR_MANIFEST, SETTINGS_FILE, f"{BUNDLE}/{MANIFEST_FILE}"}
    ):
        raise BundleError(f"archive {path}: {unexpected[0]} is not in the manifest of its bundle: {FIX}")
    for name, length in expected_sizes.items():
        if entries[name].file_size != length:
            raise BundleError(
                f"archive {path}: {name} unpacks to {entries[name].file_size} bytes instead of {length}: {FIX}"
            )
    if (total := sum(expected_sizes.values())) > max(FREE_BYTES, MAX_RATIO * size):
        raise BundleError(
            f"archive {path} has {size} bytes and unpacks to {total}, it may be made to fill a disk: {FIX}"
        )
    small = {name: _small(path, content, entries[name], MAX_SMALL) for name in (MAR_MANIFEST, SETTINGS_FILE)}
    return Archive(
        path,
        hashlib.sha256(data).hexdigest(),
        manifest,
        {name: FileEntry(sha256=hashlib.sha256(part).hexdigest(), size=len(part)) for name, part in small.items()},
        _mar_manifest(path, small[MAR_MANIFEST], manifest, handler),
        _settings(path, small[SETTINGS_FILE]),
        content,
        data,
    )


def _named(path: Path, content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries by name: only plain files with permitted names, each once."""
    always, sometimes = bundle_files()
    permitted = {MAR_MANIFEST, SETTINGS_FILE, *(f"{BUNDLE}/{name}" for name in {MANIFEST_FILE, *always, *sometimes})}
    out: dict[str, zipfile.ZipInfo] = {}
    for info in content.infolist():
        name = info.orig_filename
        if name not in permitted:
            parts = PurePosixPath(name.lower())
            if parts.suffix in CODE or parts.name.startswith("requirements"):
                raise BundleError(
                    f"archive {path} contains code ({name!r}): archives of earlier versions contained a handler, which is now part of the "
                    "installed package: package the model again"
                )
            raise BundleError(f"archive {path} contains the unknown file {name!r}: {FIX}")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise BundleError(f"archive {path}: {name} is not a plain file: {FIX}")
        if info.flag_bits & 0x1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"archive {path}: {name} is encrypted, or packed in another way than deflate: {FIX}")
        if name in out or info.filename != name:
            raise BundleError(f"archive {path}: {name} appears twice, or under two names: {FIX}")
        out[name] = info
    return out


def _small(path: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    if info.file_size <= max_bytes:
        with content.open(info) as file:
            data = file.read(max_bytes + 1)
        if len(data) <= max_bytes:
            return data
    raise BundleError(f"archive {path}: {info.filename} has more than {max_bytes} bytes: {FIX}")


def _mar_manifest(path: Path, data: bytes, manifest: Manifest, handler: str) -> MarManifest:
    try:
        mar_manifest = MarManifest.model_validate(parse_json(data))
    except ValueError as error:
        raise BundleError(f"archive {path}: {MAR_MANIFEST} is wrong ({reason(error)}): {FIX}") from error
    if mar_manifest.model.handler != handler:
        raise BundleError(
            f"archive {path} names the handler {mar_manifest.model.handler!r} instead of {handler}: package the model again"
        )
    if mar_manifest.model.modelVersion != manifest.model_version:
        raise BundleError(
            f"archive {path} declares version {mar_manifest.model.modelVersion!r} and contains {manifest.model_version!r}: {FIX}"
        )
    return mar_manifest


def _settings(path: Path, data: bytes) -> dict[str, int]:
    try:
        value = parse_yaml(data.decode("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a mapping")
        for name, number in value.items():
            if name not in SETTINGS:
                raise ValueError(f"the setting {name!r} is unknown")
            if type(number) not in (int, bool) or not 0 <= number < 1 << 31:
                raise ValueError(f"{name} is not a number of at least 0, or true or false")
    except ValueError as error:
        raise BundleError(f"archive {path}: {SETTINGS_FILE} is wrong ({reason(error)}): {FIX}") from error
    return value


@contextmanager
def _create(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert errors of :mod:`zipfile` and the system to a BundleError."""
    try:
        yield
    except _UNREADABLE as error:
        raise BundleError(f"archive {path} cannot be read ({reason(error)}): {FIX}") from error
