"""Objects of a bucket with the part of pathlib's interface that reading a log needs."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import io
import re
import weakref
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, Protocol

from thinktwice.errors import StorageError
from thinktwice.files import sha256_file
from thinktwice.storage.location import SCHEMES, Location, is_bucket
from thinktwice.storage.open import open_store
from thinktwice.storage.store import Entry

if TYPE_CHECKING:
    from thinktwice.storage.s3 import S3Store

HASH_BYTES = 8 << 20  # read at a time for a hash
MAGIC = re.compile(r"[*?\[]")


class ObjectStat(NamedTuple):
    """Size in bytes, and the version of the content (ETag)."""

    st_size: int
    version: str


class Bucket:
    """A connection to a bucket that is kept open, and what it has listed.

    An object has the version that it had when it was first seen, in all later reads: one that is replaced meanwhile is an error and
    never a mix of two contents.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        stack = ExitStack()
        self._store: S3Store = stack.enter_context(open_store(Location(name, "").uri))  # type: ignore[assignment]
        weakref.finalize(self, stack.close)
        self._objects: dict[str, Entry | None] = {}
        self._folders: dict[str, tuple[Entry, ...]] = {}

    def entry(self, key: str) -> Entry | None:
        if key not in self._objects:
            self._objects[key] = self._store.entry(key) if key else None
        return self._objects[key]

    def below(self, folder: str) -> tuple[Entry, ...]:
        """All objects in a folder, which is "" or ends with a slash, in the order of their keys."""
        if folder not in self._folders:
            entries = tuple(self._store.entries(folder))
            for entry in entries:
                self._objects.setdefault(entry.key, entry)
            self._folders[folder] = entries
        return self._folders[folder]

    def open(self, key: str, buffer_bytes: int) -> io.BufferedReader:
        return self._store.open_entry(self._present(key), buffer_bytes)

    def checksum(self, key: str) -> tuple[str, str] | None:
        return self._store.checksum(self._present(key))

    @property
    def read_bytes(self) -> int:
        return self._store.settings.read_bytes

    def _present(self, key: str) -> Entry:
        entry = self.entry(key)
        if entry is None:
            raise StorageError(f"s3://{self.name}/{key}: the object store has no such object: check the name")
        return entry


class ObjectPath:
    """An object, or a folder of objects, of a bucket."""

    __slots__ = ("_folder", "bucket", "key")

    def __init__(self, bucket: Bucket, key: str) -> None:
        self.bucket, self.key = bucket, key.rstrip("/")
        self._folder = key == "" or key.endswith(
            "/"
        )  # a slash at the end names a folder also where an object has that name

    def __str__(self) -> str:
        return f"s3://{self.bucket.name}/{self.key}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self._below}{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.bucket.name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, self.key[: len(self.key) - len(self.key.rpartition("/")[2])] + name)

    def with_suffix(self, suffix: str) -> ObjectPath:
        return self.with_name(PurePosixPath(self.name).with_suffix(suffix).name)

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return not self._folder and self.bucket.entry(self.key) is not None

    def is_dir(self) -> bool:
        return not self.is_file() and (self.key == "" or bool(self.bucket.below(self._below)))

    def stat(self) -> ObjectStat:
        """Raises: StorageError: there is no such object."""
        entry = self.bucket.entry(self.key)
        if entry is None:
            raise StorageError(f"{self}: the object store has no such object: check the name")
        return ObjectStat(entry.size, entry.version)

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedReader:
        """The content; the file object can seek. ``buffering``: bytes of a request, -1 for the usual number."""
        assert mode == "rb", mode
        return self.bucket.open(self.key, self.bucket.read_bytes if buffering < 0 else buffering)

    def objects(self) -> Iterator[tuple[ObjectPath, str]]:
        """Every object below this folder, with its name below it."""
        for entry in self.bucket.below(self._below):
            yield ObjectPath(self.bucket, entry.key), entry.key.removeprefix(self._below)

    def sha256(self) -> str:
        """Hex SHA-256 of the content, read in blocks.

        Raises:
            StorageError: the store keeps a checksum of the whole object, and the content that it sends has another one.
        """
        digest = hashlib.sha256()
        kept = self.bucket.checksum(self.key)
        check = _Checksum(kept[0]) if kept else None
        with self.open("rb") as file:
            while block := file.read(HASH_BYTES):
                digest.update(block)
                if check is not None:
                    check.update(block)
        if kept and check is not None and check.value() != kept[1]:
            raise StorageError(
                f"{self}: the object store sends other bytes than were written (its {kept[0]} checksum differs): run again, and if it "
                "stays so, upload the object again"
            )
        return digest.hexdigest()

    @property
    def _below(self) -> str:
        return f"{self.key}/" if self.key else ""


#: A path on this machine or in an object store.
AnyPath = Path | ObjectPath


def sha256_of(path: AnyPath) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    return path.sha256() if isinstance(path, ObjectPath) else sha256_file(path)


class _Updatable(Protocol):
    def update(self, block: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._sum = 0

    def update(self, block: bytes, /) -> None:
        self._sum = zlib.crc32(block, self._sum)

    def digest(self) -> bytes:
        return self._sum.to_bytes(4, "big")


class _Checksum:
    """A checksum as S3 writes it, in base64."""

    def __init__(self, algorithm: str) -> None:
        made: dict[str, _Updatable] = {
            "SHA256": hashlib.sha256(),
            "SHA1": hashlib.sha1(usedforsecurity=False),
            "CRC32": _Crc32(),
        }
        self._sum = made[algorithm]

    def update(self, block: bytes) -> None:
        self._sum.update(block)

    def value(self) -> str:
        return base64.b64encode(self._sum.digest()).decode()


class Buckets:
    """The buckets that the paths of one log name, each opened once."""

    def __init__(self) -> None:
        self._open: dict[str, Bucket] = {}

    def path(self, uri: str) -> ObjectPath:
        """The object or folder that a URI names, as it is spelled: a pattern is not interpreted.

        Raises:
            StorageError: the URI has another form, or the store cannot be opened.
        """
        name, key = parse_object(uri)
        if name not in self._open:
            self._open[name] = Bucket(name)
        return ObjectPath(self._open[name], key)

    def matches(self, uri: str) -> list[ObjectPath]:
        """The objects and folders whose names match a pattern, in no particular order.

        As for local files: ``*``, ``?`` and ``[...]`` match within one name, and no leading dot; ``**`` matches any number of folders.
        """
        whole = self.path(uri)
        folders_alone = uri.endswith("/")
        names = whole.key.split("/")
        fixed = next(number for number, name in enumerate(names) if MAGIC.search(name))
        folder = "".join(f"{name}/" for name in names[:fixed])
        wanted = names[fixed:]
        found: dict[str, None] = {}
        for entry in whole.bucket.below(folder):
            parts = entry.key.removeprefix(folder).split("/")
            for length in range(1, len(parts) + (0 if folders_alone else 1)):
                if _fits(parts[:length], wanted, is_folder=length < len(parts)):
                    # Where an object has the name of a folder, each counts.
                    found[folder + "/".join(parts[:length]) + ("/" if length < len(parts) else "")] = None
        return [ObjectPath(whole.bucket, key) for key in found]


def has_magic(uri: str) -> bool:
    """Whether the key in a URI contains a character of patterns."""
    return MAGIC.search(uri.partition("://")[2].partition("/")[2]) is not None


def parse_object(uri: str) -> tuple[str, str]:
    """Bucket and key of ``s3://BUCKET/KEY``; the key is taken literally.

    Raises:
        StorageError: the URI has another form.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() not in SCHEMES or not is_bucket(bucket) or not uri.isprintable():
        raise StorageError(f"{uri!r} is not an object or a folder of an object store: use s3://BUCKET/NAME")
    return bucket, key


def _fits(parts: list[str], wanted: Iterable[str], *, is_folder: bool) -> bool:
    first, *rest = wanted
    if first == "**":
        if not rest and not parts:
            return is_folder
        if not rest:
            return all(not part.startswith(".") for part in parts)
        return any(
            _fits(parts[skipped:], rest, is_folder=is_folder)
            for skipped in range(len(parts) + 1)
            if not any(part.startswith(".") for part in parts[:skipped])
        )
    if not parts or (parts[0].startswith(".") and not first.startswith(".")):
        return False
    if not fnmatch.fnmatchcase(parts[0], first):
        return False
    return _fits(parts[1:], rest, is_folder=is_folder) if rest else len(parts) == 1
