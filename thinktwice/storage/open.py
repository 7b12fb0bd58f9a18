"""Opens a store by its location."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinktwice.errors import StorageError
from thinktwice.storage.local import LocalStore
from thinktwice.storage.location import is_remote, parse_location
from thinktwice.storage.settings import S3Settings
from thinktwice.storage.store import Store, read_all


@contextmanager
def open_store(where: str | Path, settings: S3Settings | None = None) -> Iterator[Store]:
    """The store at a local folder or at ``s3://BUCKET/FOLDER``.

    Args:
        settings: of S3 connections; default from the environment.

    Raises:
        StorageError: the location has another form, or boto3 is not installed.
    """
    if not is_remote(str(where)):
        if not str(where):
            raise StorageError("the location is empty: use a folder or s3://BUCKET/FOLDER")
        yield LocalStore(Path(where))
        return
    location = parse_location(str(where))
    try:
        from thinktwice.storage.s3 import open_s3
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore"):
            raise
        raise StorageError("s3:// needs boto3: run `pip install 'thinktwice[s3]'`") from error
    with open_s3(location, settings or S3Settings.from_environment()) as store:
        yield store


def read_uri(uri: str, most: int) -> bytes:
    """The content of an object of at most ``most`` bytes, by its URI.

    Raises:
        StorageError: it is larger, missing or unreadable.
    """
    folder, _, name = uri.rpartition("/")
    with open_store(folder) as store:
        return read_all(store, name, most)
