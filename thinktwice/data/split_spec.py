"""How a log is split into train, validation and test: the settings, and the text of ``--split`` that they are read from.

This module imports neither numpy nor polars, because the command line checks its options with it.
"""

from __future__ import annotations

import difflib
from datetime import date
from typing import Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from thinktwice.choices import SplitKind
from thinktwice.errors import DataError, guessed, reason
from thinktwice.frozen import Frozen

PartName = Literal["train", "valid", "test"]
PARTS: tuple[PartName, ...] = ("train", "valid", "test")

FORMS = "time, random, column:NAME, days:7 (or --test-days 7) or dates:2024-03-01,2024-03-08"
_VALUE = {"column": "column", "days": "days", "dates": "valid_from"}  # kind -> the field that it needs
_OWN = ("column", "days", "valid_from", "test_from")


class SplitSpec(Frozen):
    """How to split a log.

    ========== ==========================================================================================================
    kind       train, validation and test
    ========== ==========================================================================================================
    ``time``   by time; ``valid`` and ``test`` are the shares of the latest rows
    ``random`` by a hash of the row id and ``seed``; ``valid`` and ``test`` are shares of rows
    ``days``   the last ``days`` calendar days are test, as many before them validation
    ``dates``  validation begins on ``valid_from``, test on ``test_from``
    ``column`` as the source column ``column`` says; without validation rows in it, the latest train rows (share ``valid``)
    ========== ==========================================================================================================

    Calendar days and dates are those of the schema's time zone.
    """

    kind: SplitKind = "time"
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0
    column: str | None = None
    days: int | None = Field(default=None, ge=1, le=3650)
    valid_from: date | None = None
    test_from: date | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SplitSpec:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid {self.valid} and test {self.test} leave nothing to train on: choose smaller shares"
            )
        needed = _VALUE.get(self.kind)
        if needed and not getattr(self, needed):
            raise ValueError(f"a split by {self.kind} needs {needed!r}: write --split as one of {FORMS}")
        allowed = {needed, "test_from" if self.kind == "dates" else None}
        extra = [name for name in _OWN if getattr(self, name) is not None and name not in allowed]
        if extra:
            raise ValueError(f"{extra[0]!r} has no meaning in a split of kind {self.kind!r}: leave it out")
        if self.kind == "dates":
            if self.valid_from is None or self.test_from is None:
                raise ValueError(f"a split by dates needs two dates: write --split as one of {FORMS}")
            if self.valid_from >= self.test_from:
                raise ValueError(
                    f"validation from {self.valid_from} must begin before test from {self.test_from}: swap the dates"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_absent_values(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = serialize(self)
        return {name: value for name, value in written.items() if value is not None}

    @property
    def text(self) -> str:
        """The form of ``--split``, e.g. ``days:7``."""
        if self.kind == "dates":
            return f"dates:{self.valid_from},{self.test_from}"
        value = self.column if self.kind == "column" else self.days
        return self.kind if value is None else f"{self.kind}:{value}"

    @property
    def words(self) -> str:
        """For a report: ``by time``, ``at random``, ``by column 'split'``."""
        if self.kind == "column":
            return f"by column {self.column!r}"
        if self.kind == "days":
            return f"by time, the last {self.days} days for test"
        if self.kind == "dates":
            return f"by time, validation from {self.valid_from}, test from {self.test_from}"
        return "at random" if self.kind == "random" else "by time"


def parse_split(text: str, seed: int = 0) -> SplitSpec:
    """The settings named by the text of ``--split``. ``seed`` is kept by the random split only.

    Raises:
        DataError: the text is none of :data:`FORMS`; the message names the nearest one.
    """
    kind, _, value = text.partition(":")
    kinds = get_args(SplitKind)
    if kind not in kinds:
        close = difflib.get_close_matches(kind, kinds, n=1)
        raise DataError(f"--split {text!r} is unknown: {guessed(close, 'choose one of ' + FORMS)}")
    if value and kind not in _VALUE:
        raise DataError(f"--split {text!r}: {kind} takes no value; choose one of {FORMS}")
    settings: dict[str, object] = {"kind": kind}
    if kind == "random":
        settings["seed"] = seed
    elif kind == "dates":
        begin, _, end = value.partition(",")
        settings |= {"valid_from": begin.strip() or None, "test_from": end.strip() or None}
    elif kind in _VALUE:
        settings[_VALUE[kind]] = value or None
    try:
        return SplitSpec.model_validate(settings)
    except ValidationError as error:
        raise DataError(f"--split {text!r} is not understood ({reason(error)}): choose one of {FORMS}") from error
