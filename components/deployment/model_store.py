"""Model versions in an object store: the folders for a ``storageUri`` of KServe.

A version's folder is written once and never changes. Keys, region and address of the store come from boto3's environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL``).
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from components.deployment.deploy.deployment import label_value
from thinktwice.errors import BundleError, PipelineError, ResourceError
from thinktwice.files import full_disk_named
from thinktwice.release.archive import ARCHIVE_FILE, BUNDLE
from thinktwice.release.champion import CHAMPION_FILE
from thinktwice.release.feature_store import FEATURE_STORE, SETTINGS_FILE
from thinktwice.release.release import RELEASE_FILE, verify_release

#: Content of a champion's folder that a predictor does not need; likewise the tables of the feature store, which are training data.
NOT_SHIPPED = (BUNDLE, CHAMPION_FILE)
TABLES = ".parquet"
MAX_BYTES = 5 << 30  # maximum size of an object written in one request
BLOCK = 1 << 20


class Location(NamedTuple):
    """A prefix of a bucket; ``prefix`` is "" or ends with a slash."""

    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def parse_place(uri: str) -> Location:
    """``s3://BUCKET/PREFIX``, with or without a trailing slash; KFP's ``minio://`` is equivalent.

    Raises:
        PipelineError: the URI is not of this form.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("s3", "minio") or not parts.netloc or parts.query or parts.fragment:
        raise PipelineError(f"{uri!r} is not a folder of an object store: use s3://BUCKET/FOLDER")
    prefix = parts.path.strip("/")
    return Location(parts.netloc, f"{prefix}/" if prefix else "")


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model version that a predictor reads, by key below the version's prefix.

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
            raise BundleError(
                f"{folder} contains no {needed}: give a champion, or the folder model/ of the deploy step"
            )
    return files


def upload_model(source: str, to: str) -> tuple[str, list[str]]:
    """Write a model version to ``TO/VERSION/``. A second call completes an interrupted one.

    Args:
        source: local folder of the version, or its ``s3://`` prefix in the same store, e.g. in KFP's bucket.
        to: ``s3://BUCKET/FOLDER``.

    Returns:
        The ``storageUri`` of the version, and the keys of its files below that.

    Raises:
        BundleError: the source is not a complete release, or the version's folder has other content.
        PipelineError: ``to`` is not a location in an object store.
        ResourceError: the store does not respond, or refuses the request.
    """
    target = parse_place(to)
    with _store() as client, tempfile.TemporaryDirectory(prefix="thinktwice-upload-") as scratch:
        if "://" in source:
            folder = Path(scratch)
            _download(client, parse_place(source), folder)
        else:
            folder = Path(source)
        files = model_files(folder)
        release = verify_release(folder).release
        version = Location(target.bucket, f"{target.prefix}{label_value(release.model_version)}/")
        present = set(_keys(client, version))
        _check_nothing_else(version, present, files)
        # The archive last: without it a predictor does not start on an incomplete version.
        for key in sorted(files, key=lambda key: key == ARCHIVE_FILE):
            _put(client, version, key, files[key], key in present)
    return version.uri, sorted(files)


@contextmanager
def _store() -> Iterator[Any]:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = Config(connect_timeout=10, retries={"max_attempts": 3, "mode": "standard"})
    try:
        with closing(boto3.client("s3", config=settings)) as client:
            yield client
    except ClientError as error:
        details = error.response.get("Error", {})
        raise ResourceError(
            f"the object store refuses ({details.get('Code')}: {details.get('Message')}): check the bucket and the rights of the keys"
        ) from error
    except BotoCoreError as error:
        raise ResourceError(
            f"the object store cannot be used ({error}): check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error


def _keys(client: Any, location: Location) -> list[str]:
    """Keys below a location, relative to it."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix)
    return [entry["Key"].removeprefix(location.prefix) for page in pages for entry in page.get("Contents", [])]


def _download(client: Any, location: Location, folder: Path) -> None:
    keys = [key for key in _keys(client, location) if key and not key.endswith("/")]
    if not keys:
        raise BundleError(f"{location.uri} contains nothing: give the folder model/ of the deploy step")
    for key in keys:
        if ".." in PurePosixPath(key).parts or PurePosixPath(key).is_absolute():
            raise BundleError(f"{location.uri} contains the key {key!r}, which is not a file name: give another folder")
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        with full_disk_named(folder / key):
            client.download_file(location.bucket, location.prefix + key, str(folder / key))


def _check_nothing_else(version: Location, present: set[str], files: dict[str, Path]) -> None:
    if extra := sorted(present - set(files) - {""}):
        raise BundleError(
            f"{version.uri} contains {extra[0]}, which is not a file of this model: a version's folder never changes, so give another "
            "folder or remove that one"
        )


def _put(client: Any, version: Location, key: str, path: Path, present: bool) -> None:
    """Write one object unless it exists; an existing one must be identical."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise BundleError(
            f"{path} has {size} bytes, and at most {MAX_BYTES} are written at once: keep features in Redis"
        )
    with path.open("rb") as body:
        digest = hashlib.file_digest(body, "sha256")
    object_id = {"Bucket": version.bucket, "Key": version.prefix + key}
    if not present and _put_if_absent(client, object_id, path, digest.digest()):
        return
    existing = client.get_object(**object_id)
    if existing["ContentLength"] == size:
        existing_digest = hashlib.sha256()
        for block in existing["Body"].iter_chunks(BLOCK):
            existing_digest.update(block)
        if existing_digest.digest() == digest.digest():
            return
    existing["Body"].close()
    raise BundleError(
        f"{version.uri}{key} is there and differs from {path}: a version's folder never changes, so give another folder or "
        "remove that one"
    )


def _put_if_absent(client: Any, object_id: dict[str, str], path: Path, digest: bytes) -> bool:
    """Write one object. Returns False if another upload has written it meanwhile."""
    from botocore.exceptions import ClientError

    request = {**object_id, "ChecksumSHA256": base64.b64encode(digest).decode()}
    for condition in ({"IfNoneMatch": "*"}, {}):
        try:
            with path.open("rb") as body:
                client.put_object(**request, **condition, Body=body)
            return True
        except ClientError as error:
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412:
                return False
            # Some stores do not support conditions; the object did not exist a moment ago.
            if not condition or error.response.get("Error", {}).get("Code") != "NotImplemented":
                raise
    return False
