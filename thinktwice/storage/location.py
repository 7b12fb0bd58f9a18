"""Locations: a local folder, or a folder of an object store."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from thinktwice.errors import StorageError

SCHEMES = ("s3", "minio")  # KFP writes minio:// for every S3 store
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class Location(NamedTuple):
    """A folder of a bucket; ``prefix`` is "" or ends with a slash."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def as_text(path: Path | str) -> str:
    """A path or URI as text; pathlib leaves one slash of the two after a scheme."""
    text = str(path)
    if isinstance(path, Path) and not path.exists():
        return re.sub(r"(?m)^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)", r"\1://", text)
    return text


def is_remote(text: str) -> bool:
    """Whether ``text`` is a URI and not a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def is_bucket(name: str) -> bool:
    """Whether a bucket can have this name."""
    return _BUCKET.fullmatch(name) is not None


def parse_location(uri: str) -> Location:
    """Parse ``s3://BUCKET/FOLDER`` with any number of slashes at its end.

    Raises:
        StorageError: the URI has another form.
    """
    plain = uri.isprintable() and uri == uri.strip()  # urlsplit would drop line breaks and tabs
    try:
        parts = urlsplit(uri)
    except ValueError:  # e.g. an unclosed bracket
        plain = False
    if not plain or parts.scheme not in SCHEMES or not is_bucket(parts.netloc) or parts.query or parts.fragment:
        raise StorageError(f"{uri!r} is not a folder of an object store: use s3://BUCKET/FOLDER")
    prefix = parts.path.strip("/")
    if prefix and not is_safe_key(prefix):
        raise StorageError(f"{uri!r} contains an empty name, '.' or '..': use s3://BUCKET/FOLDER with plain names")
    return Location(parts.netloc, f"{prefix}/" if prefix else "")


def is_safe_key(key: str) -> bool:
    """Whether a key is a relative path of plain names, so that it can also name a local file below a folder."""
    return (
        key != ""
        and key.isprintable()
        and "\\" not in key
        and PurePosixPath(key).as_posix() == key
        and not PurePosixPath(key).is_absolute()
        and not {"..", "."} & set(key.split("/"))
    )
