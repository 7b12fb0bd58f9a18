"""Values as Feast stores them in Redis: protobufs, which take a microsecond or two each to decode."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")

KEPT, KEPT_BYTES = 1 << 14, 64  # values that are kept decoded, and the longest of them
_NOT_KEPT = object()


class StoredValues:
    """Decodes values and timestamps. Short ones are kept by their bytes, because most users share them. Thread-safe.

    Args:
        value: Feast's protobuf of a value.
    """

    def __init__(self, value: Any) -> None:
        from google.protobuf.timestamp_pb2 import Timestamp

        self.type, self._timestamp = value, Timestamp
        self._values: dict[bytes, Any] = {}
        self._seconds: dict[bytes, float] = {}

    def decoded(self, raw: bytes) -> Any:
        """The value of a stored protobuf."""
        found = self._values.get(raw, _NOT_KEPT)
        if found is not _NOT_KEPT:
            return found
        value = self.type.FromString(raw)
        kind = value.WhichOneof("val")
        content: Any = None if kind is None else getattr(value, kind)
        if kind == "float_val":  # a Python float would be another number, see thinktwice.schema.values
            content = np.float32(content)
        elif kind is not None and kind.endswith("_list_val"):
            return list(content.val)  # not kept, because its reader could change it
        return _kept(self._values, raw, content)

    def seconds(self, raw: bytes) -> float:
        """The Unix seconds of a stored timestamp."""
        found = self._seconds.get(raw)
        if found is None:
            at = self._timestamp.FromString(raw)
            found = _kept(self._seconds, raw, float(at.seconds) + at.nanos / 1e9)
        return found

    def header(self, size: int) -> bytes:
        """The bytes of a stored value before its content of ``size`` bytes, which are its last ones."""
        stored: bytes = self.type(bytes_val=bytes(size)).SerializeToString()
        return stored[: len(stored) - size]


def _kept(known: dict[bytes, Value], raw: bytes, value: Value) -> Value:
    if len(raw) <= KEPT_BYTES:
        if len(known) >= KEPT:
            known.clear()
        known[raw] = value
    return value
