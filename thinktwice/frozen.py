"""Base class of settings and written records: immutable, without unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable pydantic model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
