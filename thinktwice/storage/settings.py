"""Settings of S3 connections. Keys, region and address are boto3's own variables (``AWS_*``) and files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from thinktwice.errors import StorageError, reason
from thinktwice.frozen import Frozen

ENCRYPTION = "THINKTWICE_S3_ENCRYPTION"
KMS_KEY = "THINKTWICE_S3_KMS_KEY"
UNCONDITIONAL = "THINKTWICE_S3_UNCONDITIONAL"


class S3Settings(Frozen):
    """How objects are written and how long a store may take.

    Attributes:
        encryption: server-side encryption requested for every object; None leaves it to the default of the bucket.
        kms_key: id or ARN of the key, for ``aws:kms``.
        unconditional: write to a store that does not support conditional writes, where concurrent uploads can overwrite each other.
        attempts: tries of a request, with exponential backoff between them.
    """

    encryption: Literal["AES256", "aws:kms"] | None = None
    kms_key: str = ""
    unconditional: bool = False
    attempts: int = Field(5, ge=1)
    connect_timeout_s: float = Field(5.0, gt=0)
    read_timeout_s: float = Field(30.0, gt=0)
    part_bytes: int = Field(16 << 20, ge=5 << 20)  # of a multipart upload; S3 refuses smaller parts
    max_parts: int = Field(10_000, ge=1)  # S3's limit for one object
    read_bytes: int = Field(8 << 20, ge=1)  # of one request for a range

    @model_validator(mode="after")
    def _key_only_with_kms(self) -> Self:
        if self.kms_key and self.encryption != "aws:kms":
            raise ValueError(f"{KMS_KEY} needs {ENCRYPTION}=aws:kms")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> S3Settings:
        """The settings that the environment names; an empty variable counts as unset.

        Raises:
            StorageError: a variable has a value that is not allowed.
        """
        names = {
            "encryption": ENCRYPTION,
            "kms_key": KMS_KEY,
            "unconditional": UNCONDITIONAL,
            "attempts": "AWS_MAX_ATTEMPTS",
        }
        values = {field: environment[name] for field, name in names.items() if environment.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            field = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else "kms_key"
            raise StorageError(
                f"the environment variable {names[field]} is not usable ({reason(error)}): correct it, or unset it"
            ) from error
