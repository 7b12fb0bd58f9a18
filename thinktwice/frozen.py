"""Base class of settings and written records: immutable, without unknown keys. Types of numbers that people write."""

from __future__ import annotations

from typing import Annotated

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, Strict

#: Numbers in a file that a person writes: not text, not true or false (``coverage: true`` would be everybody), and finite: JSON has no
#: other, so what is recorded could not be read again.
WrittenNumber = Annotated[float, Strict(), AllowInfNan(False)]
WrittenCount = Annotated[int, Strict(), Field(le=10**12)]


class Frozen(BaseModel):
    """An immutable pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
