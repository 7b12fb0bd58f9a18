"""Errors of an S3 store as sentences: what was refused, why, and what to do. They never contain keys or passwords."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore import exceptions as boto

from thinktwice.errors import StorageError, reason

KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
ADDRESS = "AWS_ENDPOINT_URL"
REGION = "AWS_DEFAULT_REGION"
_BUSY = ("cannot answer now", "try again later")
_REGION = ("says that the bucket is in another region", f"set {REGION} to the region of the bucket")
_KEYS = ("does not accept the keys", f"check {KEYS}")
_EXPIRED = ("does not accept the credentials because they have expired", "get new ones, and run again")

# Reason and fix by S3's error code.
REFUSALS = {
    "NoSuchBucket": ("has no such bucket", "check its name, or create it"),
    "NoSuchKey": ("has no such object", "check the name"),
    "AccessDenied": ("denies access", f"give the keys in {KEYS} the rights to list, read and write this folder"),
    "AllAccessDisabled": ("denies all access", "check the account of the bucket"),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidToken": ("does not accept the session token", "check AWS_SESSION_TOKEN"),
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidSecurity": _KEYS,
    "RequestTimeTooSkewed": ("refuses requests because the clock of this machine is wrong", "set the clock"),
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "RequestTimeout": _BUSY,
    "ThrottlingException": _BUSY,
    "BadDigest": ("received other bytes than were sent", "run again"),
    "XAmzContentSHA256Mismatch": ("received other bytes than were sent", "run again"),
    "InvalidDigest": ("does not accept the checksum", "use a store that supports SHA-256 checksums"),
    "NoSuchUpload": ("no longer has the upload, which another writer has ended", "run again"),
    "EntityTooLarge": ("does not accept an object of this size", "use another store"),
    "QuotaExceeded": ("has no space left", "free some, or raise the quota"),
    "XMinioStorageFull": ("has no space left", "free some, or raise the quota"),
    "KMS.NotFoundException": ("has no such encryption key", "check THINKTWICE_S3_KMS_KEY"),
    "KMS.DisabledException": ("cannot use the encryption key", "check THINKTWICE_S3_KMS_KEY"),
    "PreconditionFailed": ("has another object than a moment ago", "run again"),
}
# For answers without an error code of S3, e.g. of a proxy or to a HEAD request.
STATUSES = {
    301: _REGION,
    307: _REGION,
    403: ("denies access", f"check {KEYS} and their rights"),
    404: ("has no such object or bucket", "check the name"),
    429: _BUSY,
    500: _BUSY,
    502: _BUSY,
    503: _BUSY,
    504: _BUSY,
}


@contextmanager
def as_sentences(uri: str) -> Iterator[None]:
    """Turn boto3's errors into a StorageError about ``uri``."""
    try:
        yield
    except boto.ClientError as error:
        raise StorageError(f"{uri}: {refusal(error.response)}") from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise StorageError(f"{uri}: no credentials for the object store were found: set {KEYS}") from error
    except (boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError) as error:
        raise StorageError(f"{uri}: the object store {_EXPIRED[0]}: {_EXPIRED[1]}") from error
    except boto.ProfileNotFound as error:
        raise StorageError(f"{uri}: {_told(error)}: check AWS_PROFILE") from error
    except (boto.NoRegionError, boto.InvalidRegionError) as error:
        raise StorageError(f"{uri}: no usable region: set {REGION}") from error
    except boto.SSLError as error:
        raise StorageError(
            f"{uri}: the object store has no trusted certificate ({_told(error)}): check {ADDRESS}, or set AWS_CA_BUNDLE"
        ) from error
    except boto.FlexibleChecksumError as error:
        raise StorageError(
            f"{uri}: the object store sends other bytes than were written ({_told(error)}): run again, and if it stays so, upload the "
            "object again"
        ) from error
    except (boto.ResponseStreamingError, boto.IncompleteReadError) as error:
        raise StorageError(
            f"{uri}: the object store stopped in the middle of the object ({_told(error)}): run again, and if it stays so, check the network "
            "and upload the object again"
        ) from error
    except (boto.ReadTimeoutError, boto.ConnectTimeoutError) as error:
        raise StorageError(
            f"{uri}: the object store does not answer in time ({_told(error)}): check {ADDRESS} and try again"
        ) from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:  # no connection, or one that broke
        if isinstance(
            getattr(error, "kwargs", {}).get("error"), RecursionError
        ):  # as below, met within the HTTP client
            raise StorageError(f"{uri}: the object store {_REGION[0]}: {_REGION[1]}") from error
        raise StorageError(
            f"{uri}: the object store cannot be reached ({_told(error)}): check {ADDRESS} and the network"
        ) from error
    except RecursionError as error:  # boto3 follows redirects to another region without end
        raise StorageError(f"{uri}: the object store {_REGION[0]}: {_REGION[1]}") from error
    except (boto.BotoCoreError, ValueError) as error:  # ValueError: an address that is not a URL
        raise StorageError(
            f"{uri}: the object store cannot be used ({_told(error)}): check the variables AWS_*"
        ) from error


def refusal(response: Any) -> str:
    """The sentence for an error response of S3."""
    details = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(details.get("Code", ""))
    why, fix = (
        REFUSALS.get(code)
        or STATUSES.get(status)
        or ("refuses the request", "check the bucket and the rights of the keys")
    )
    told = _clean(str(details.get("Message", "")))
    shown = ": ".join(part for part in (code, told) if part)
    return f"the object store {why} ({shown or status}): {fix}"


def status_of(error: boto.ClientError) -> int:
    """HTTP status of an error response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: boto.ClientError) -> str:
    """S3's code of an error response; of an answer without a body its status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _told(error: BaseException) -> str:
    return _clean(reason(error))


def _clean(text: str) -> str:
    """In one short line, without a user and password in an address."""
    return re.sub(r"//[^/@\s]*@", "//", " ".join(text.split()))[:300]
