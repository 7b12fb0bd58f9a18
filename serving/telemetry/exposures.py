"""The exposure of a request, from the headers of the gateway.

The raw unit is in a header and never in the log: a keyed hash of it is, the same for every server and experiment with the
same secret.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from serving.telemetry.prediction_log import SALT
from thinktwice.experiment.assignment import bucket_of, unit_problem
from thinktwice.experiment.gateway_config import ARM, ENROLLED, EXPERIMENT, HOST_HEADER, SALT_HEADER, UNIT_HEADER
from thinktwice.records.exposure import NO_EXPOSURE, Exposure
from thinktwice.records.served import UserIds

ATTEMPT_HEADER, HOST, SHADOW_END = (
    "x-envoy-attempt-count",
    "host",
    "-shadow",
)  # the gateway's proxy sets the first and last
LONGEST_NAME = 40
MOST_ATTEMPTS = 100
NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
PUBLIC_KEY = b"thinktwice"  # without a secret

Value = TypeVar("Value")


class ExposureHeaders:
    """Reads the headers of the gateway. An invalid one is counted and logged as missing, never an error for the caller.

    Args:
        user_ids: setting of the prediction log. The hashes of units are keyed with the secret of the environment. Without one
            they can be computed by anyone who knows the ids, so none are logged if user ids are not.
        on_ignored: called with the name of each header that was ignored.
    """

    def __init__(self, user_ids: UserIds, on_ignored: Callable[[str], None]) -> None:
        secret = os.environ.get(SALT, "").encode()
        self._key = hashlib.sha256(secret).digest() if secret else None if user_ids == "none" else PUBLIC_KEY
        self._on_ignored = on_ignored

    def exposure(self, headers: Mapping[str, str]) -> Exposure:
        """The exposure of a request.

        Args:
            headers: lower-case names.
        """
        if not any(name in headers for name in (EXPERIMENT, ARM, ENROLLED, UNIT_HEADER)):
            return NO_EXPOSURE  # it did not come through a gateway
        read = self._read
        unit = read(headers, UNIT_HEADER, lambda text: None if unit_problem(text) else text.strip(" \t"), optional=True)
        salt = read(headers, SALT_HEADER, _name, optional=True)
        return Exposure(
            experiment=read(headers, EXPERIMENT, _name),
            assigned=read(headers, ARM, _name),
            enrolled=read(headers, ENROLLED, {"0": False, "1": True}.get),
            unit=None if unit is None or self._key is None else unit_hash(unit, self._key),
            bucket=None if unit is None or salt is None else bucket_of(salt, unit),
            attempt=read(headers, ATTEMPT_HEADER, _attempt, optional=True),
            shadow=is_shadow(headers),
        )

    def _read(
        self, headers: Mapping[str, str], name: str, parse: Callable[[str], Value | None], *, optional: bool = False
    ) -> Value | None:
        text = headers.get(name)
        if text is None and optional:
            return None
        value = None if text is None else parse(text)
        if value is None:
            self._on_ignored(name)
        return value


def unit_hash(unit: str, key: bytes) -> int:
    """64-bit hash of a unit, keyed (``key``: at most 64 bytes)."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), key=key, digest_size=8, person=b"unit").digest(), "big")


def is_shadow(headers: Mapping[str, str]) -> bool:
    """Whether a request is a copy: the proxy appends ``-shadow`` to its host, before a port. The host that the caller sent is
    in a header of the gateway, because a caller's host may end like that too."""
    sent = headers.get(HOST_HEADER)
    host = headers.get(HOST, "")
    if sent is None or host == sent:
        return False
    return host.endswith(SHADOW_END) or host.rpartition(":")[0].endswith(SHADOW_END)


def _name(text: str) -> str | None:
    return text if 0 < len(text) <= LONGEST_NAME and NAME.issuperset(text) else None


def _attempt(text: str) -> int | None:
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_ATTEMPTS))
    return int(text) if digits and 1 <= int(text) <= MOST_ATTEMPTS else None
