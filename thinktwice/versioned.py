"""Result files: JSON files whose content is a typed, frozen model with a format number, written and read through that model."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, StrictInt, model_serializer

from thinktwice.errors import ThinktwiceError, reason
from thinktwice.files import read_json, write_json
from thinktwice.stats.significance import Interval


class Record(BaseModel):
    """A part of a result: frozen, without unknown keys, with finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SparseRecord(Record):
    """A part with fields that exist only in some runs: an optional field with the value None is not written."""

    @model_serializer(mode="wrap")
    def _without_absent_fields(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = serialize(self)
        fields = type(self).model_fields
        return {key: value for key, value in written.items() if value is not None or fields[key].is_required()}


class MeasuredInterval(Record):
    """An :class:`~thinktwice.stats.significance.Interval` as stored in files: None for a number that is not finite."""

    value: float | None
    low: float | None
    high: float | None
    significant: bool

    @classmethod
    def of(cls, interval: Interval, **more: object) -> Self:
        """The interval, with the fields that a subclass adds."""
        return cls.model_validate({**interval.to_json(), **more})


class ResultFile(Record):
    """A whole file. ``FORMAT`` is its format number, increased when a key is added, removed or changes its meaning."""

    FORMAT: ClassVar[int]

    format: StrictInt

    def write(self, path: Path | str) -> None:
        """Write the file to a temporary path, then rename it."""
        write_json(path, self.model_dump(mode="json"))


F = TypeVar("F", bound=ResultFile)


def read_result(path: Path, kind: type[F], error: type[ThinktwiceError], fix: str) -> F:
    """Read a result file.

    Raises:
        error: it is missing, damaged, has another format, or lacks or adds a key; the message names the file, what is wrong
            and ``fix``.
    """
    try:
        return kind.model_validate(checked_format(read_json(path), kind.FORMAT))
    except (OSError, ValueError) as cause:
        raise error(f"{path} cannot be read ({reason(cause)}): {fix}") from cause


def checked_format(value: object, expected: int) -> object:
    """Return ``value`` unchanged after checking its format number first.

    Raises:
        ValueError: it is an object with another format number, or without one.
    """
    if isinstance(value, dict) and (found := value.get("format")) != expected:
        shown = "no format number" if found is None else f"format {found!r}"
        raise ValueError(f"it has {shown}, this version reads {expected}")
    return value
