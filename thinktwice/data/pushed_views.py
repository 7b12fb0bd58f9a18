"""Views of the online store that the feedback service keeps up to date, derived from the schema.

The states of instant statistics are one field of bytes each (:mod:`thinktwice.data.instant.columns`). ``log_instant`` has one row, with
the instant up to which all others are complete. Statistics of whole days and sequences are ordinary feature tables, whose
rows are pushed too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thinktwice.data.instant.definition import definition_of
from thinktwice.data.instant.state import StateKind
from thinktwice.schema import LogSchema

STATE, WATERMARK = "state", "watermark"  # fields: bytes; integer microseconds of UTC
LOG_ENTITY: Literal["log"] = "log"
LOG_COLUMN = "feedback_log"  # key column of the one row of the whole log; its key is the name of the schema
DEFINITION_TAG = "definition"  # of a view: the hash of the definition of its states


@dataclass(frozen=True)
class InstantView:
    """A view of states."""

    name: str
    kind: StateKind
    entity: Literal["user", "item", "log"]
    key: str


def instant_views(schema: LogSchema) -> tuple[InstantView, ...]:
    """The views of states that a log has; empty without ``statistics.instant``."""
    definition = definition_of(schema)
    if definition is None:
        return ()
    out = []
    if definition.user is not None:
        out.append(InstantView("user_instant", "user", "user", definition.user))
    if definition.item is not None:
        out.append(InstantView("item_instant", "item", "item", definition.item))
    if definition.user is not None and definition.item is not None:
        out.append(InstantView("user_recent", "recent", "user", definition.user))
    return (*out, InstantView("log_instant", "log", LOG_ENTITY, LOG_COLUMN))


def push_source_name(view: str) -> str:
    """The Feast push source of a view."""
    return f"{view}_push"
