"""A store that fails: clear sentences, no keys in them, no half-written object, and a later run that goes through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto
from hypothesis import given
from hypothesis import strategies as st

from tests.storage.faults import Answer, Proxy, Seen, first
from tests.storage.servers import Bucket, free_ports
from thinktwice.errors import StorageError
from thinktwice.storage.open import open_store
from thinktwice.storage.s3_faults import REFUSALS, STATUSES, as_sentences
from thinktwice.storage.settings import S3Settings
from thinktwice.storage.store import read_all

pytestmark = pytest.mark.server

FEW = S3Settings(attempts=3, part_bytes=5 << 20, read_bytes=1 << 20, read_timeout_s=60.0, connect_timeout_s=60.0)
ONCE = FEW.model_copy(update={"attempts": 1})


@pytest.fixture(autouse=True)
def boto_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's own retries follow each other at once; how many there are stays."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of three parts."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(11 << 20))
    return path


def put(seen: Seen) -> bool:
    return seen.method == "PUT"


def part(seen: Seen) -> bool:
    return seen.method == "PUT" and "partNumber" in seen.path


def completion(seen: Seen) -> bool:
    return seen.method == "POST" and "uploadId" in seen.path


def get(seen: Seen) -> bool:
    return seen.method == "GET" and "range" in seen.headers


TRANSIENT = [
    Answer(503, "SlowDown"),
    Answer(500, "InternalError"),
    Answer(502),
    Answer(reset=True),
]


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda a: a.code or str(a.status or "reset"))
def test_a_fault_that_passes_is_not_noticed(
    bucket: Bucket, faulty: Proxy, big: Path, source: Path, fault: Answer
) -> None:
    with open_store(bucket.uri, FEW) as store:
        faulty.plan(first(2, fault, put))
        assert store.put_if_absent("small", source)
        faulty.plan(first(2, fault, part))
        assert store.put_if_absent("big", big)
        faulty.plan(first(2, fault, get))
        assert read_all(store, "big", 11 << 20) == big.read_bytes()
    assert bucket.body("small") == b"content" and bucket.keys() == ["big", "small"] and bucket.uploads() == []


def test_an_answer_that_does_not_come_is_asked_for_again(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    faulty.plan(first(1, Answer(hang=True), put))
    with open_store(bucket.uri, FEW.model_copy(update={"read_timeout_s": 3.0, "attempts": 10})) as store:
        assert store.put_if_absent("key", source)


def test_a_read_that_breaks_in_the_middle_goes_on(bucket: Bucket, faulty: Proxy, big: Path) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="big", Body=big.read_bytes())
    faulty.plan(first(2, Answer(cut=True), get))
    with open_store(bucket.uri, FEW) as store:
        assert read_all(store, "big", 11 << 20) == big.read_bytes()
        faulty.plan(lambda seen: Answer(cut=True) if get(seen) else None)
        with pytest.raises(StorageError, match=f"{bucket.uri}/big: the object store stopped in the middle"):
            read_all(store, "big", 11 << 20)


def test_an_object_replaced_during_a_read_is_an_error_and_not_a_mixture(bucket: Bucket, big: Path) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key="big", Body=big.read_bytes())
    with open_store(bucket.uri, FEW) as store, pytest.raises(StorageError, match="another object than a moment ago"):
        with store.open("big") as file:
            file.read(10)
            bucket.client.put_object(Bucket=bucket.name, Key="big", Body=os.urandom(11 << 20))
            file.read()


def test_an_answer_that_was_lost_is_not_taken_for_another_writer(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    """The object was written, its confirmation broke, and the second try finds an object: the caller compares."""
    lost: list[int] = []

    def plan(seen: Seen) -> Answer | None:
        if put(seen) and not lost:
            lost.append(1)
            return Answer(cut=True, reset=False)
        return None

    faulty.plan(plan)
    with open_store(bucket.uri, FEW) as store:
        store.put_if_absent("key", source)
        assert read_all(store, "key", 10) == b"content"


@pytest.mark.parametrize("where", [part, completion])
@pytest.mark.parametrize("fault", [Answer(503, "SlowDown"), Answer(403, "AccessDenied")], ids=["503", "403"])
def test_a_failed_upload_leaves_nothing(
    bucket: Bucket, faulty: Proxy, big: Path, where: Callable[[Seen], bool], fault: Answer
) -> None:
    faulty.plan(lambda seen: fault if where(seen) else None)
    with open_store(bucket.uri, FEW) as store:
        with pytest.raises(StorageError, match=f"{bucket.uri}/big: the object store "):
            store.put_if_absent("big", big)
        assert bucket.keys() == [] and bucket.uploads() == []
        faulty.plan(lambda _: None)
        assert store.put_if_absent("big", big)
    assert bucket.body("big") == big.read_bytes()


KILLED = """
import sys
from pathlib import Path
from thinktwice.storage.open import open_store
from thinktwice.storage.settings import S3Settings
with open_store(sys.argv[1], S3Settings(part_bytes=5 << 20)) as store:
    store.put_if_absent("big", Path(sys.argv[2]))
"""


def test_a_killed_upload_is_invisible_and_the_next_one_removes_it(bucket: Bucket, faulty: Proxy, big: Path) -> None:
    """SIGKILL while the second part is under way."""
    faulty.plan(lambda seen: Answer(hang=True) if "partNumber=2" in seen.path else None)
    process = subprocess.Popen([sys.executable, "-c", KILLED, bucket.uri, str(big)])
    while not any("partNumber=2" in seen.path for seen in faulty.seen):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert bucket.keys() == [] and bucket.uploads() == ["big"]
    faulty.plan(lambda _: None)
    with open_store(bucket.uri, FEW) as store:
        assert store.put_if_absent("big", big)
    assert bucket.body("big") == big.read_bytes() and bucket.uploads() == []


REFUSED = [
    (400, "ExpiredToken", "get new ones"),
    (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
    (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
    (403, "AccessDenied", "denies access"),
    (403, "RequestTimeTooSkewed", "set the clock"),
    (301, "PermanentRedirect", "AWS_DEFAULT_REGION"),
    (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
    (404, "NoSuchBucket", "no such bucket"),
    (503, "SlowDown", "try again later"),
    (503, "", "try again later"),
    (507, "XMinioStorageFull", "no space left"),
    (418, "Teapot", r"refuses the request \(Teapot: told by the test\)"),
]


@pytest.mark.parametrize(("status", "code", "said"), REFUSED)
def test_a_refusal_names_the_location_the_reason_and_the_fix(
    bucket: Bucket, faulty: Proxy, source: Path, status: int, code: str, said: str
) -> None:
    faulty.plan(lambda _: Answer(status, code))
    with open_store(bucket.uri, ONCE) as store:
        for act in (
            lambda: store.put_if_absent("key", source),
            lambda: list(store.entries()),
            lambda: read_all(store, "key", 9),
        ):
            with pytest.raises(StorageError) as raised:
                act()
            text = str(raised.value)
            assert text.startswith(bucket.uri) and "secret" not in text and "\n" not in text and "Traceback" not in text
        # A HEAD request, the last one above, has no code to tell.
        with pytest.raises(StorageError, match=said):
            list(store.entries())
    assert bucket.keys() == []


def test_every_code_has_a_reason_and_a_fix() -> None:
    for why, fix in [*REFUSALS.values(), *STATUSES.values()]:
        assert why and fix and not why.endswith(".") and not fix.endswith(".")


@given(st.sampled_from([*REFUSALS, "Unknown"]), st.text(max_size=40), st.sampled_from([*STATUSES, 400, 599, 0]))
def test_any_refusal_is_one_line_without_a_password(code: str, message: str, status: int) -> None:
    response: Any = {
        "Error": {"Code": code, "Message": f"{message} http://me:hidden@host/x"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    with pytest.raises(StorageError) as raised, as_sentences("s3://b/x"):
        raise boto.ClientError(response, "PutObject")
    assert "hidden" not in str(raised.value) and "\n" not in str(raised.value)


def errors_of_boto() -> list[type[Exception]]:
    return [kind for kind in vars(boto).values() if isinstance(kind, type) and issubclass(kind, boto.BotoCoreError)]


@pytest.mark.parametrize("kind", errors_of_boto(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_becomes_a_sentence(kind: type[Exception]) -> None:
    try:
        error = kind()
    except (KeyError, TypeError):
        error = kind.__new__(kind)
        Exception.__init__(error, "told")
    with pytest.raises(StorageError, match=r"^s3://b/x: "), as_sentences("s3://b/x"):
        raise error


def test_nobody_listens(bucket: Bucket, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hidden@127.0.0.1:{port}")
    with (
        open_store(bucket.uri, FEW) as store,
        pytest.raises(StorageError, match=r"cannot be reached.*AWS_ENDPOINT_URL") as raised,
    ):
        store.put_if_absent("key", source)
    assert "hidden" not in str(raised.value)


def test_a_store_that_never_answers(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    faulty.plan(lambda _: Answer(hang=True))
    settings = ONCE.model_copy(update={"read_timeout_s": 0.2})
    with open_store(bucket.uri, settings) as store, pytest.raises(StorageError, match="does not answer in time"):
        store.put_if_absent("key", source)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "http://", "http://[::1"])
def test_an_address_that_is_none(bucket: Bucket, source: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(StorageError, match="AWS_"), open_store(bucket.uri, ONCE) as store:
        store.put_if_absent("key", source)


def test_without_credentials(bucket: Bucket, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with open_store(bucket.uri, ONCE) as store, pytest.raises(StorageError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        store.put_if_absent("key", source)


def test_wrong_keys_at_a_store_that_checks_them(bucket: Bucket, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if bucket.kind == "moto":
        pytest.skip("moto accepts every key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with open_store(bucket.uri, ONCE) as store, pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as raised:
        store.put_if_absent("key", source)
    assert "not-the-secret" not in str(raised.value)


@pytest.mark.parametrize("size", [10, 6 << 20])
def test_a_store_that_ignores_conditions_is_refused(
    bucket: Bucket, faulty: Proxy, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers 200 to both writers; found out by writing the first object twice."""
    if bucket.kind == "seaweedfs":
        pytest.skip("SeaweedFS notices that the signed header was removed")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    faulty.drop("if-none-match")
    with open_store(bucket.uri, FEW) as store, pytest.raises(StorageError, match="does not support conditional writes"):
        store.put_if_absent("key", path)
    monkeypatch.setenv("THINKTWICE_S3_UNCONDITIONAL", "true")
    with open_store(bucket.uri) as store:
        assert store.put_if_absent("other", path) and not store.put_if_absent("other", path)
    assert bucket.body("other") == path.read_bytes()


def test_a_store_that_knows_no_conditions_is_refused(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    faulty.plan(lambda seen: Answer(501, "NotImplemented") if "if-none-match" in seen.headers else None)
    with open_store(bucket.uri, FEW) as store, pytest.raises(StorageError, match="THINKTWICE_S3_UNCONDITIONAL"):
        store.put_if_absent("key", source)
    assert bucket.keys() == []
    with open_store(bucket.uri, FEW.model_copy(update={"unconditional": True})) as store:
        assert store.put_if_absent("key", source)


def test_a_conflict_with_another_write_is_tried_again(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    faulty.plan(first(1, Answer(409, "ConditionalRequestConflict"), put))
    with open_store(bucket.uri, FEW) as store:
        assert store.put_if_absent("key", source)
    faulty.plan(lambda seen: Answer(409, "ConditionalRequestConflict") if put(seen) else None)
    with open_store(bucket.uri, FEW) as store, pytest.raises(StorageError, match="ConditionalRequestConflict"):
        store.put_if_absent("another", source)
    assert len([seen for seen in faulty.seen if put(seen)]) == 3


def test_requests_carry_checksums_conditions_and_encryption(
    bucket: Bucket, faulty: Proxy, source: Path, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bucket.kind == "seaweedfs":
        pytest.skip("SeaweedFS was started without an encryption key")
    monkeypatch.setenv("THINKTWICE_S3_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("THINKTWICE_S3_KMS_KEY", "alias/models")
    seen: list[Seen] = []

    def plan(request: Seen) -> Answer | None:
        seen.append(request)
        return None

    faulty.plan(plan)
    with open_store(bucket.uri) as store:
        assert store.put_if_absent("small", source)
    (request, *_) = [request for request in seen if put(request)]
    assert request.headers["if-none-match"] == "*" and request.headers["x-amz-checksum-sha256"]
    assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
    assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/models"
    monkeypatch.delenv("THINKTWICE_S3_KMS_KEY")
    monkeypatch.setenv("THINKTWICE_S3_ENCRYPTION", "AES256")
    seen.clear()
    with open_store(bucket.uri, S3Settings.from_environment().model_copy(update={"part_bytes": 5 << 20})) as store:
        assert store.put_if_absent("big", big)
    parts = [request for request in seen if part(request)]
    assert len(parts) >= 3 and all(request.headers["x-amz-checksum-sha256"] for request in parts)
    (begin, *_) = [request for request in seen if request.method == "POST" and "uploads" in request.path]
    assert begin.headers["x-amz-server-side-encryption"] == "AES256"
    assert all(request.headers["if-none-match"] == "*" for request in seen if completion(request))


def test_damaged_bytes_are_refused_by_the_store(bucket: Bucket, faulty: Proxy, source: Path) -> None:
    """A byte changes on the way; the store compares it with the checksum of the request."""
    if bucket.kind == "moto":
        pytest.skip("moto compares no checksums")
    faulty.damage()
    with open_store(bucket.uri, ONCE) as store:
        with pytest.raises(StorageError):
            store.put_if_absent("key", source)
    assert bucket.keys() == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("THINKTWICE_S3_ENCRYPTION", "rot13", "AES256"),
        ("THINKTWICE_S3_UNCONDITIONAL", "perhaps", "THINKTWICE_S3_UNCONDITIONAL"),
        ("THINKTWICE_S3_KMS_KEY", "key", "THINKTWICE_S3_ENCRYPTION=aws:kms"),
        ("AWS_MAX_ATTEMPTS", "many", "AWS_MAX_ATTEMPTS"),
        ("AWS_MAX_ATTEMPTS", "0", "AWS_MAX_ATTEMPTS"),
    ],
)
def test_a_setting_that_is_none(name: str, value: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        S3Settings.from_environment({name: value})
    assert S3Settings.from_environment({name: ""}) == S3Settings()
