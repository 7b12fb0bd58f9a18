"""The description of a log; see :mod:`thinktwice.schema.log`."""

from thinktwice.schema.fields import (
    EVENT_TIME,
    LABEL,
    ROW_ID,
    SCHEMA_FILE,
    Cross,
    Entity,
    EntityKey,
    LabelColumn,
    LogField,
    ModelField,
    Sequence,
    SideTable,
    SideTables,
    TimeColumn,
    Vector,
)
from thinktwice.schema.log import LogSchema, load_schema, parse_schema
from thinktwice.schema.statistics import FeedbackDelay, InstantStatistics, Statistics

__all__ = [
    "EVENT_TIME",
    "LABEL",
    "ROW_ID",
    "SCHEMA_FILE",
    "Cross",
    "Entity",
    "EntityKey",
    "FeedbackDelay",
    "InstantStatistics",
    "LabelColumn",
    "LogField",
    "LogSchema",
    "ModelField",
    "Sequence",
    "SideTable",
    "SideTables",
    "Statistics",
    "TimeColumn",
    "Vector",
    "load_schema",
    "parse_schema",
]
