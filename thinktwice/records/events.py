"""Events that arrive one by one: an item was shown, an item was clicked.

An event has the same form in a request, a file and the durable log of the feedback service. An impression and its click are
joined by request id and item id. Ids and values are spelled texts (:mod:`thinktwice.schema.values`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, TypeAdapter

from thinktwice.frozen import Frozen

Id = Annotated[str, Field(min_length=1, max_length=512)]
Value = Annotated[str, Field(max_length=512)] | None
Instant = Annotated[float, Field(ge=0, lt=4_102_444_800, allow_inf_nan=False)]  # Unix seconds, before 2100
Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Event(Frozen):
    request_id: Id  # of the request that scored the item
    item_id: Id | None = None  # None only in a log without items
    at: Instant

    @property
    def time(self) -> int:
        """:attr:`at` in microseconds."""
        return round(Fraction(self.at) * 1_000_000)


class Impression(_Event):
    """One item shown to one user once. ``values`` are the fields that counters need, as they were served."""

    kind: Literal["impression"] = "impression"
    user_id: Id | None = None
    values: dict[Name, Value] = Field(default_factory=dict, max_length=64)


class Click(_Event):
    """A click on one shown item. ``at`` is the client's clock, ``received_at`` ours."""

    kind: Literal["click"] = "click"
    received_at: Instant | None = None


Event = Annotated[Impression | Click, Field(discriminator="kind")]
#: Reads one event from a JSON object.
EVENT: TypeAdapter[Impression | Click] = TypeAdapter(Event)

CLICK_COLUMNS = pa.schema(
    [
        ("request_id", pa.string()),
        ("item_id", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("received_at", pa.timestamp("us", "UTC")),
    ]
)
