"""The interface of a store: files below one folder, each named by its key, a relative path with slashes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, Protocol

from thinktwice.errors import StorageError


class Entry(NamedTuple):
    """A file of a store, as it was when it was listed."""

    key: str
    size: int  # bytes
    version: str = ""  # of the content: an object's ETag


class Store(Protocol):
    """Files below one folder. Nothing is ever overwritten.

    Every method raises StorageError with the location, the reason and the fix if the store cannot do it.
    """

    @property
    def uri(self) -> str:
        """The folder, for messages and as the base of URIs; ends with a slash."""

    def entries(self, below: str = "") -> Iterator[Entry]:
        """All files whose keys start with ``below``, in order of their keys."""

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""

    def entry(self, key: str) -> Entry | None:
        """The file with this key; None if there is none."""

    def open(self, key: str) -> AbstractContextManager[BufferedReader]:
        """Open a file for reading; the file object can seek. A file that is replaced meanwhile is an error."""

    def put_if_absent(self, key: str, source: Path) -> bool:
        """Write a file, whole or not at all, unless the key exists.

        Returns:
            False if the key exists. Of several writers at the same time exactly one gets True, provided that the store checks and
            writes in one step; SeaweedFS does so only for objects of one part. So whoever must own a folder writes a small file first.
        """

    def remove(self, key: str) -> None:
        """Remove a file; one that does not exist is no error."""


def read_all(store: Store, key: str, most: int) -> bytes:
    """The content of a file of at most ``most`` bytes.

    Raises:
        StorageError: it is larger, missing or unreadable.
    """
    with store.open(key) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise StorageError(f"{store.uri}{key} has more than {most} bytes: it is not the expected file, remove it")
    return data
