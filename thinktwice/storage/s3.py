"""A folder of an S3 store, through boto3."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from thinktwice.errors import StorageError
from thinktwice.storage.location import Location
from thinktwice.storage.s3_faults import as_sentences, code_of, status_of
from thinktwice.storage.settings import UNCONDITIONAL, S3Settings
from thinktwice.storage.store import Entry

BROKEN = (
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    FlexibleChecksumError,
)  # a body that ends early or is damaged; boto3 tries only requests again
CHECKSUMS = ("SHA256", "SHA1", "CRC32")  # of those that S3 knows, the ones in Python's library
THREADS = 4  # parts of one object uploaded side by side
LONGEST_PAUSE_S = 5.0
ABSENT = {"IfNoneMatch": "*"}  # the condition of a write: no object with this key


@contextmanager
def open_s3(location: Location, settings: S3Settings) -> Iterator[S3Store]:
    """A store with a connection of its own."""
    config = Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        retries={"total_max_attempts": settings.attempts, "mode": "standard"},
        max_pool_connections=THREADS + 1,
    )
    with as_sentences(location.uri):
        # A session of its own: the default one is shared by threads and keeps the first credentials that it saw.
        client = boto3.session.Session().client("s3", config=config)
    with closing(client):
        yield S3Store(client, location, settings)


class S3Store:
    """Objects below a prefix. Writes are conditional (``If-None-Match: *``) and carry SHA-256 checksums."""

    def __init__(self, client: Any, location: Location, settings: S3Settings) -> None:
        self.client, self.location, self.settings = client, location, settings
        self._conditions_work = settings.unconditional  # not to be checked then

    @property
    def uri(self) -> str:
        return self.location.uri

    def entries(self, below: str = "") -> Iterator[Entry]:
        prefix = self.location.prefix
        with as_sentences(self.uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket, Prefix=prefix + below
            )
            found = [
                Entry(each["Key"].removeprefix(prefix), each["Size"], each["ETag"])
                for page in pages
                for each in page.get("Contents", [])
            ]
        # Not every store lists in order, and some tools write a marker for a folder.
        yield from sorted(entry for entry in found if entry.key and not entry.key.endswith("/"))

    def folders(self) -> list[str]:
        prefix = self.location.prefix
        with as_sentences(self.uri):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket, Prefix=prefix, Delimiter="/"
            )
            names = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
        return sorted(name.removeprefix(prefix).rstrip("/") for name in names)

    def entry(self, key: str) -> Entry | None:
        with as_sentences(self.uri + key):
            try:
                head = self._head(key)
            except ClientError as error:
                if status_of(error) == 404 and code_of(error) != "NoSuchBucket":
                    return None
                raise
        return Entry(key, head["ContentLength"], head["ETag"])

    @contextmanager
    def open(self, key: str) -> Iterator[io.BufferedReader]:
        with as_sentences(self.uri + key):
            head = self._head(key)
        with self.open_entry(Entry(key, head["ContentLength"], head["ETag"]), self.settings.read_bytes) as file:
            yield file

    def open_entry(self, entry: Entry, buffer_bytes: int) -> io.BufferedReader:
        """The object as it was listed, read with requests of ``buffer_bytes`` or, for a larger read, as many bytes as asked for."""
        return io.BufferedReader(cast(Any, _Ranges(self, entry)), buffer_size=buffer_bytes)

    def checksum(self, entry: Entry) -> tuple[str, str] | None:
        """The algorithm and base64 value of a checksum of the whole object that the store keeps and that is known here."""
        with as_sentences(self.uri + entry.key):
            head = self._head(entry.key, ChecksumMode="ENABLED")
        if head["ETag"] != entry.version or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            return None
        found = {name: str(head.get(f"Checksum{name}", "")) for name in CHECKSUMS}
        # A checksum of the checksums of parts ends with their number.
        return next(((name, value) for name, value in found.items() if value and "-" not in value), None)

    def _head(self, key: str, **options: str) -> Any:
        """Size, ETag and more of an object. An answer to HEAD has no body, so the reason of a refusal comes from a GET."""
        try:
            return self.client.head_object(**self._object(key), **options)
        except ClientError:
            with closing(self.client.get_object(**self._object(key), Range="bytes=0-0")["Body"]):
                raise

    def read_range(self, key: str, start: int, end: int, etag: str) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive) of the object with this ETag; a connection that breaks is tried again."""
        for attempt in range(self.settings.attempts):
            with as_sentences(self.uri + key):
                try:
                    answer = self.client.get_object(**self._object(key), Range=f"bytes={start}-{end - 1}", IfMatch=etag)
                    with closing(answer["Body"]) as body:
                        data = cast(bytes, body.read())
                    if len(data) == end - start:
                        return data
                except BROKEN:
                    if attempt + 1 == self.settings.attempts:
                        raise
            _pause(attempt)
        raise StorageError(f"{self.uri}{key}: the object store sends fewer bytes than it announced: try again")

    def put_if_absent(self, key: str, source: Path) -> bool:
        with as_sentences(self.uri + key):
            for attempt in range(self.settings.attempts):
                try:
                    written = self._put(key, source)
                    if written and not self._conditions_work:
                        self._check_conditions(key, source)
                    return written
                except ClientError as error:
                    # 409: another write of the same key was under way.
                    if status_of(error) != 409 or attempt + 1 == self.settings.attempts:
                        raise
                _pause(attempt)
        raise AssertionError("unreachable")

    def remove(self, key: str) -> None:
        with as_sentences(self.uri + key):
            self.client.delete_object(**self._object(key))

    def _put(self, key: str, source: Path, condition: dict[str, str] = ABSENT) -> bool:
        if self.settings.unconditional:
            condition = {}
            if any(entry.key == key for entry in self.entries(key)):
                return False
        multipart = source.stat().st_size > self.settings.part_bytes
        try:
            if multipart:
                self._put_parts(key, source, condition)
            else:
                data = source.read_bytes()
                self.client.put_object(
                    **self._object(key), **condition, **self._encryption(), Body=data, ChecksumSHA256=_sha256(data)
                )
        except ClientError as error:
            if status_of(error) == 412:
                return False
            if condition and multipart and self._exists(key):
                return False  # the winner of a race has aborted this upload
            if condition and status_of(error) == 501:
                raise StorageError(self._unsafe(key)) from error
            raise
        if multipart:
            self._abort_others(key)
        return True

    def _put_parts(self, key: str, source: Path, condition: dict[str, str]) -> None:
        size = source.stat().st_size
        part_bytes = max(self.settings.part_bytes, -(-size // self.settings.max_parts))
        target = self._object(key)
        upload = self.client.create_multipart_upload(**target, **self._encryption(), ChecksumAlgorithm="SHA256")[
            "UploadId"
        ]

        def put(number: int) -> dict[str, Any]:
            with source.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)
            digest = _sha256(data)
            answer = self.client.upload_part(
                **target, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=digest
            )
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": digest}

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                numbers = range(1, -(-size // part_bytes) + 1)
                parts = [future.result() for future in [pool.submit(put, number) for number in numbers]]
            self.client.complete_multipart_upload(
                **target, **condition, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            self._abort(key, upload)
            raise

    def _abort(self, key: str, upload: str) -> None:
        with suppress(
            ClientError, BotoCoreError
        ):  # what is left costs space, and the next upload of this key removes it
            self.client.abort_multipart_upload(**self._object(key), UploadId=upload)

    def _exists(self, key: str) -> bool:
        """Whether the key exists; False also if the store does not answer."""
        with suppress(StorageError):
            return any(entry.key == key for entry in self.entries(key))
        return False

    def _abort_others(self, key: str) -> None:
        """Remove half-finished uploads of a key that now exists: none of them can succeed any more."""
        with suppress(ClientError, BotoCoreError):
            name = self.location.prefix + key
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.location.bucket, Prefix=name
            )
            for found in [found for page in pages for found in page.get("Uploads", [])]:
                if found["Key"] == name:
                    self._abort(key, found["UploadId"])

    def _check_conditions(self, key: str, source: Path) -> None:
        """Write an object that exists a second time: a store that accepts it ignores conditions."""
        if self._put(key, source):
            raise StorageError(self._unsafe(key))
        self._conditions_work = True

    def _unsafe(self, key: str) -> str:
        return (
            f"{self.uri}{key}: the object store does not support conditional writes (If-None-Match), so that two uploads at the same time "
            f"could overwrite each other: use one that does, or set {UNCONDITIONAL}=true and run one upload at a time"
        )

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self.location.prefix + key}

    def _encryption(self) -> dict[str, str]:
        settings = self.settings
        if settings.encryption is None:
            return {}
        key = {"SSEKMSKeyId": settings.kms_key} if settings.kms_key else {}
        return {"ServerSideEncryption": settings.encryption, **key}


class _Ranges(io.RawIOBase):
    """An object as a file that can seek; each read is a request for a range of the object as it was when it was opened."""

    def __init__(self, store: S3Store, entry: Entry) -> None:
        self._store, self._entry, self._size, self._place = store, entry, entry.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._place + min(len(buffer), self._store.settings.read_bytes))
        if end <= self._place:
            return 0
        data = self._store.read_range(self._entry.key, self._place, end, self._entry.version)
        buffer[: len(data)] = data
        self._place = end
        return len(data)


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _pause(attempt: int) -> None:
    """Exponential backoff with jitter."""
    time.sleep(min(LONGEST_PAUSE_S, random.uniform(0.1, 0.3) * 2**attempt))
