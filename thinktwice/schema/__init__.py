"""The description of a log; see :mod:`thinktwice.schema.log`."""

from thinktwice.schema.log import (
    EVENT_TIME,
    LABEL,
    ROW_ID,
    SCHEMA_FILE,
    Entity,
    EntityKey,
    LogField,
    LogSchema,
    ModelField,
    Sequence,
    Vector,
    load_schema,
    parse_schema,
)
from thinktwice.schema.statistics import FeedbackDelay, InstantStatistics, Statistics

__all__ = [
    "EVENT_TIME",
    "LABEL",
    "ROW_ID",
    "SCHEMA_FILE",
    "Entity",
    "EntityKey",
    "FeedbackDelay",
    "InstantStatistics",
    "LogField",
    "LogSchema",
    "ModelField",
    "Sequence",
    "Statistics",
    "Vector",
    "load_schema",
    "parse_schema",
]
