"""Manifests of files by size and SHA-256, and the check that a folder contains exactly those files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field

from thinktwice.errors import BundleError, reason
from thinktwice.frozen import Frozen

BLOCK = 1 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Frozen):
    """The manifest entry of one file."""

    sha256: Sha256
    size: int = Field(ge=0, strict=True)  # bytes

    @staticmethod
    def of(path: Path) -> FileEntry:
        """The entry of a file in its present state."""
        with open_plain(path) as file:
            return FileEntry(
                sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=os.fstat(file.fileno()).st_size
            )


@contextmanager
def open_plain(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading; the last component of ``path`` must not be a link.

    Raises:
        OSError: it is missing, unreadable, or a link, folder, pipe, socket or device. A pipe does not block.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise OSError(error.errno, "it is a link", str(path)) from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a plain file", str(path))
        yield file


def read_plain(path: Path, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes; raises OSError like :func:`open_plain`."""
    with open_plain(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"it has more than {most} bytes", str(path))
    return data


def check_folder(
    what: str, folder: Path, files: Mapping[str, FileEntry], fix: str, *, also: Collection[str] = ()
) -> None:
    """Check that a folder contains exactly ``files``, unchanged: every name, kind, size and hash.

    Args:
        what: names the folder in messages, e.g. ``bundle out/bundle``.
        files: entries by path within the folder.
        fix: what the user should do; the end of every message.
        also: additional paths that are allowed.

    Raises:
        BundleError: anything differs; the message names the file.
    """
    _check_names(what, folder, files, fix, also)
    for name, entry in files.items():
        check_file(what, name, folder / name, entry, fix)


def copy_folder(
    what: str, folder: Path, target: Path, files: Mapping[str, FileEntry], fix: str, *, also: Collection[str] = ()
) -> None:
    """Copy ``files`` and check them like :func:`check_folder` in the same read, so ``target`` contains what was hashed.

    Args:
        target: folder to create.
    """
    _check_names(what, folder, files, fix, also)
    target.mkdir(parents=True)
    for name, entry in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with (target / name).open("xb") as copy:
            check_file(what, name, folder / name, entry, fix, copy)


def _check_names(what: str, folder: Path, files: Mapping[str, FileEntry], fix: str, also: Collection[str]) -> None:
    names = {*files, *also}
    parents = {parent.as_posix() for name in names for parent in Path(name).parents}
    for name, entry in _entries(what, folder, fix):
        if entry.is_symlink():
            raise BundleError(f"{what}: {name} is a link, only plain files are allowed: {fix}")
        if name not in names and name not in parents:
            raise BundleError(f"{what}: {name} is not in the manifest: remove it, or {fix}")
        if not (entry.is_file() if name in names else entry.is_dir()):
            raise BundleError(f"{what}: {name} is not a plain {'file' if name in names else 'folder'}: {fix}")


def check_file(what: str, name: str, path: Path, entry: FileEntry, fix: str, copy: BinaryIO | None = None) -> None:
    """Check size and hash of one file; ``copy`` receives the content read.

    Raises:
        BundleError: it differs, or cannot be read.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size:
                raise BundleError(f"{what}: {name} has {size} bytes instead of {entry.size}, it is damaged: {fix}")
            digest = _digest(file, entry.size, copy)
    except FileNotFoundError:
        raise BundleError(f"{what}: {name} is missing: {fix}") from None
    except OSError as error:
        raise BundleError(f"{what}: {name} cannot be read ({reason(error)}): {fix}") from error
    check_digest(what, name, digest, entry, fix)


def _digest(file: BufferedReader, size: int, copy: BinaryIO | None) -> str:
    if copy is None:
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest, left = hashlib.sha256(), size
    while left > 0 and (block := file.read(min(BLOCK, left))):  # a file that grows is not read further
        digest.update(block)
        copy.write(block)
        left -= len(block)
    return digest.hexdigest()


def check_digest(what: str, name: str, digest: str, entry: FileEntry, fix: str) -> None:
    """Raise a BundleError unless ``digest`` is that of the entry."""
    if digest != entry.sha256:
        raise BundleError(
            f"{what}: {name} has SHA-256 {digest[:12]}... instead of {entry.sha256[:12]}..., it is damaged: {fix}"
        )


def _entries(what: str, folder: Path, fix: str, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder by its path within, links not followed; a folder comes before its content."""
    try:
        entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
    except OSError as error:
        raise BundleError(f"{what}: {below or folder} cannot be read ({reason(error)}): {fix}") from error
    for entry in entries:
        name = below + entry.name
        yield name, entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(what, folder, fix, name + "/")
