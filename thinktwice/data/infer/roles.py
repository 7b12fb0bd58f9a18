"""The roles of the columns of a log: time, label, user, item, field, side table, or something that the schema leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Side = Literal["user", "item"]
FieldKind = Literal["categorical", "boolean", "numeric"]  # of one value in a row


@dataclass
class TimeRole:
    """``column`` None: the order of the rows."""

    column: str | None
    format: str
    reason: str
    zoneless: bool = False


@dataclass
class LabelRole:
    column: str
    threshold: float | None
    reason: str
    click_rate: float
    invalid: int = 0


@dataclass
class FieldRole:
    """A field of the schema; ``leak`` is the reason why it is written as a comment."""

    column: str
    kind: Literal["categorical", "boolean", "numeric", "list", "vector"]
    entity: Literal["user", "item", "context"]
    reason: str
    question: str = ""
    minimum: float | None = None
    allowed: tuple[str, ...] | None = None
    dim: int = 0
    separator: str = ""
    length: int = 0
    leak: str = ""


@dataclass(frozen=True)
class TableRole:
    """A side table: its file relative to the schema's folder, the column of its key, and of the time from which a row is valid."""

    side: Side
    path: str
    key: str
    valid_from: str | None
    format: str | None
    share: float  # of the sample's impressions with a row
    rows: int
    fields: tuple[FieldRole, ...]
    title: str | None
    left_out: dict[str, str]


@dataclass
class Roles:
    time: TimeRole
    label: LabelRole
    user: str | None = None
    item: str | None = None
    title: str | None = None
    propensity: str | None = None
    split: str | None = None
    fields: list[FieldRole] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    tables: list[TableRole] = field(default_factory=list)
