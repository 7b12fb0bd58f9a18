"""Events that come in one by one: an item was shown, an item was clicked."""

from __future__ import annotations

from typing import Annotated

import pyarrow as pa
from pydantic import Field

from thinktwice.frozen import Frozen

Id = Annotated[str, Field(min_length=1, max_length=256)]
Instant = Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]  # Unix seconds


class Impression(Frozen):
    """One item shown to one user once. ``request_id`` is that of the request that scored it."""

    request_id: Id
    item_id: Id
    at: Instant


class Click(Frozen):
    """A click on one shown item. ``at`` is the client's clock, ``received_at`` ours."""

    request_id: Id
    item_id: Id
    at: Instant
    received_at: Instant


CLICK_COLUMNS = pa.schema(
    [
        ("request_id", pa.string()),
        ("item_id", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("received_at", pa.timestamp("us", "UTC")),
    ]
)
