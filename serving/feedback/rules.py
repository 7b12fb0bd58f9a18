"""Validation of events: strict checks against the schema of the log, with the reason for a rejection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from serving.feedback.config import FeedbackConfig
from serving.feedback.target import definition_for
from thinktwice.errors import reason
from thinktwice.records.events import EVENT, Click, Impression
from thinktwice.schema import LogSchema
from thinktwice.schema.limits import is_inexact, text_problem
from thinktwice.schema.truth import truth
from thinktwice.schema.values import spell

_IDS = ("request_id", "item_id", "user_id")


class EventRules:
    """Validates events of one log.

    Raises:
        FeatureStoreError: the log has no ``statistics.instant``, and events are not only recorded.
    """

    def __init__(self, schema: LogSchema, config: FeedbackConfig | None = None) -> None:
        self._config = config or FeedbackConfig()
        self.use(schema)

    def use(self, schema: LogSchema) -> None:
        """Validate by another schema from now on."""
        config = self._config
        definition = definition_for(schema, config)
        self._truths = schema.boolean_fields
        item_key = schema.key_of("item")
        self._needs_item = item_key is not None
        of_user = schema.attributes_of("user") if schema.has_anonymous_users else ()
        #: Fields that an impression without a user must not contain.
        self.of_user = frozenset(f.name for f in of_user)
        if config.record_only:  # all of them: a later model may count them
            fields = [f.name for f in schema.fields if f.derived is None and f.kind != "list"]
        else:
            fields = [c.field for c in (*definition.topics, *definition.attributes)]
            fields += [s.of for s in schema.computed_sequences if s.of != item_key]
        #: Fields that an impression may contain: those that counters and sequences need.
        self.fields = tuple(dict.fromkeys(fields))

    def event(self, value: object, *, item_needed: bool = True) -> Impression | Click:
        """The event in a JSON object or a row; ids and values of any type are converted to text.

        Args:
            item_needed: False for a row of a training log, which may have no item id.

        Raises:
            ValueError: the event is invalid; the message is the reason, in one line.
        """
        if not isinstance(value, dict):
            raise ValueError("an event is a JSON object")
        fields: dict[str, Any] = dict(value)
        for name in _IDS:
            if name in fields:
                fields[name] = _spelled(name, fields[name])
        if isinstance(values := fields.get("values"), Mapping):
            if unknown := sorted(set(map(str, values)) - set(self.fields)):
                raise ValueError(
                    f"values.{unknown[0][:64]}: no counter needs this field; those are {', '.join(self.fields) or 'none'}"
                )
            if fields.get("user_id") is None:  # an anonymous visitor is served without attributes of a user
                values = {name: v for name, v in values.items() if name not in self.of_user}
            fields["values"] = {
                name: (_truth if name in self._truths else _spelled)(f"values.{name}", v) for name, v in values.items()
            }
        try:
            event = EVENT.validate_python(fields, strict=True)
        except ValidationError as error:
            raise ValueError(reason(error)) from None
        if item_needed and self._needs_item and event.item_id is None:
            raise ValueError("item_id: is missing")
        return event


def _truth(name: str, value: Any) -> str | None:
    try:
        return truth(value)
    except ValueError:
        raise ValueError(f"{name}: must be true or false (or yes and no, 1 and 0)") from None


def _spelled(name: str, value: Any) -> str | None:
    try:
        text = None if is_inexact(value) else spell(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: a value of type {type(value).__name__} is not an id or a category") from None
    if text is None and value is not None and value != "" and value == value:
        raise ValueError(f"{name}: this number could be several ids, send the id as text")
    if text is not None and (problem := text_problem(text)):
        raise ValueError(f"{name}: {problem}")
    return text
