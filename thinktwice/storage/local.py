"""A folder of this machine (also a mounted volume) as a store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from thinktwice.errors import StorageError, reason
from thinktwice.files import full_disk_named
from thinktwice.storage.location import is_safe_key
from thinktwice.storage.store import Entry

PART = ".part"  # suffix of a file that is being written


class LocalStore:
    """Files below a folder. Links are followed neither as files nor as folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def uri(self) -> str:
        return f"{self.folder}/"

    def entries(self, below: str = "") -> Iterator[Entry]:
        found = []
        for parent, folders, names in os.walk(self.folder):
            folders.sort()
            for name in names:
                path = Path(parent, name)
                key = path.relative_to(self.folder).as_posix()
                if key.startswith(below) and not path.is_symlink() and not _unfinished(name):
                    found.append(Entry(key, path.stat().st_size))
        yield from sorted(found)

    def folders(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False))

    def entry(self, key: str) -> Entry | None:
        path = self._path(key)
        return Entry(key, path.stat().st_size) if path.is_file() and not path.is_symlink() else None

    @contextmanager
    def open(self, key: str) -> Iterator[BufferedReader]:
        try:
            file = self._path(key).open("rb")
        except OSError as error:
            raise StorageError(f"{self.uri}{key} cannot be read ({reason(error)}): check the path") from error
        with file:
            yield file

    def put_if_absent(self, key: str, source: Path) -> bool:
        path = self._path(key)
        try:
            with full_disk_named(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
                temporary = Path(name)
                try:
                    with os.fdopen(handle, "wb") as target, source.open("rb") as content:
                        shutil.copyfileobj(content, target)
                        target.flush()
                        os.fsync(target.fileno())
                    temporary.chmod(0o644)
                    os.link(temporary, path)  # unlike a rename, fails if the name exists
                except FileExistsError:
                    return False
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be written ({reason(error)}): check the folder and its rights"
            ) from error
        return True

    def remove(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.uri}{key} cannot be removed ({reason(error)}): check the folder and its rights"
            ) from error

    def _path(self, key: str) -> Path:
        if not is_safe_key(key):
            raise StorageError(f"{self.uri} contains the key {key!r}, which is not a file name: use another folder")
        return self.folder / key


def _unfinished(name: str) -> bool:
    """Whether a killed writer left the file."""
    return name.startswith(".") and name.endswith(PART)
