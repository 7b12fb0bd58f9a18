"""Statistics settings of a schema: statistics of users and items over whole days, and up to the instant of an impression.

:mod:`thinktwice.data.statistics` computes the former, :mod:`thinktwice.data.instant` the latter, in training and in serving alike.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

WindowName = Literal["hour", "day", "week"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_DELAY = 90 * 86_400


def _seconds(value: object) -> object:
    """Whole seconds from a number of seconds, or from text such as ``30s``, ``10m``, ``6h`` or ``1d``."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9}) ?([smhd]?)", value)
        if match is None:
            raise ValueError(f"{value!r} is not a duration: write whole seconds, or 30s, 10m, 6h or 1d")
        return int(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a duration: write whole seconds, or 30s, 10m, 6h or 1d")
    return value


Seconds = Annotated[int, BeforeValidator(_seconds), Field(ge=0, le=_LONGEST_DELAY)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeedbackDelay(_Frozen):
    """How long after an impression its outcome is known, in seconds or as ``10m``.

    A click may be known within seconds. A non-click is known only after the time in which a click would count.
    """

    click: Seconds = 600
    no_click: Seconds = 600


class InstantStatistics(_Frozen):
    """Counters of users and items, up to the instant of every impression.

    ``topics`` are categorical item fields: a user has counters per value of these. ``attributes`` are categorical user
    fields: an item has counters per value of these. Defaults: the first two such fields of the schema. There are
    ``topic_slots`` or ``attribute_slots`` slots for the values of a field: with at most as many ``allowed`` values, each
    has its own slot; otherwise a hash selects the slot, and values may share one.
    """

    feedback_delay: FeedbackDelay = FeedbackDelay()
    topics: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None
    last: tuple[Annotated[int, Field(ge=1, le=200)], ...] = (3, 10, 50)  # latest outcomes of a user or an item
    windows: tuple[WindowName, ...] = ("hour", "day", "week")
    topic_slots: int = Field(default=32, ge=2, le=1024)
    attribute_slots: int = Field(default=8, ge=2, le=1024)

    @field_validator("feedback_delay", mode="before")
    @classmethod
    def _one_delay(cls, value: Any) -> Any:
        """A single duration applies to clicks and non-clicks."""
        return {"click": value, "no_click": value} if isinstance(value, str | int) else value

    @model_validator(mode="after")
    def _different(self) -> InstantStatistics:
        for name in ("topics", "attributes", "last", "windows"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names a value twice")
        return self


class Statistics(_Frozen):
    """Trailing impression counts and smoothed click rates of users and items over windows of whole days, and ``instant`` ones.

    A window closes at midnight UTC, whatever the zone of ``time``, strictly before the impressions that may see it. ``0`` means
    since the beginning. With ``instant`` and without ``windows_days`` there are no statistics of whole days.
    """

    windows_days: tuple[int, ...] = (7, 0)
    entities: tuple[Literal["user", "item"], ...] = ("user", "item")
    buckets: int = Field(default=24, ge=2, le=1024)
    instant: InstantStatistics | None = None

    @model_validator(mode="before")
    @classmethod
    def _instant_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("instant") is not None and "windows_days" not in value:
            return {**value, "windows_days": ()}
        return value

    @model_serializer(mode="wrap")
    def _with_windows(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """With ``instant`` the windows are always written: their default depends on it."""
        written: dict[str, Any] = serialize(self)
        if self.instant is not None:
            written["windows_days"] = list(self.windows_days)
        return written

    @model_validator(mode="after")
    def _consistent(self) -> Statistics:
        if len(set(self.windows_days)) != len(self.windows_days) or any(w < 0 for w in self.windows_days):
            raise ValueError(f"statistics: windows_days {self.windows_days} must be different numbers of 0 or more")
        return self
