"""The rule catalogue: requirements on rows and on a log as a whole, derived only from the schema of the log.

Row rules decide which rows are clean (:mod:`thinktwice.validate.split`); profile rules (:mod:`thinktwice.validate.profile_rules`) judge
the log as a whole. The same catalogue generates the Great Expectations suites.

A row that breaks any row rule is quarantined. Row rules are *critical* for the clean log (not one clean row may break
one); for the run as a whole quarantined rows are a warning until their share exceeds the budget.
"""

from __future__ import annotations

from typing import Literal

from thinktwice.files import sha256_text
from thinktwice.schema.fields import (
    EVENT_TIME,
    ROW_WEIGHT,
    TABLE_OF,
    VALID_FROM,
    EntityKey,
    LogField,
    Sequence,
    Vector,
)
from thinktwice.schema.limits import (
    EARLIEST_US,
    INEXACT_FROM,
    LATEST_US,
    MAX_SEQUENCE,
    MAX_TEXT,
    MAX_WEIGHT,
    NUMBER_LIMIT,
)
from thinktwice.schema.log import LogSchema
from thinktwice.schema.numbers import NUMBER
from thinktwice.validate.column_rules import (
    Rule,
    bound_rule,
    field_rules,
    label_rules,
    list_rules,
    missing_rule,
    number_rule,
    rules_of_time,
    text_rule,
    time_rules,
)
from thinktwice.validate.profile_rules import profile_rules

UNSPLITTABLE = Rule(
    id="record:unsplittable",
    check="splittable",
    column="",
    source="",
    description="the record can be split into the columns of the log",
)


def row_rules(schema: LogSchema) -> tuple[Rule, ...]:
    """Every row rule of a log, in a stable order: label, time, keys, fields, vectors, extras, duplicates."""
    rules = [UNSPLITTABLE, *label_rules(schema), *time_rules(schema)]
    for entity in ("user", "item"):
        key: EntityKey | None = getattr(schema.entities, entity)
        if key is not None:
            if not key.anonymous:
                rules.append(
                    missing_rule(key.key, key.source_column, f"the {entity} id is present", _without_id(entity))
                )
            rules.append(text_rule(key.key, key.source_column))
    rules += _rules_of(schema.logged_fields, schema.logged_vectors, schema.logged_sequences)
    for name, column in (("propensity", schema.propensity), ("truth", schema.truth)):
        if column is not None:
            rules.append(number_rule(name, column))
            rules.append(bound_rule(name, column, "minimum", 0.0))
            rules.append(bound_rule(name, column, "maximum", 1.0))
    if schema.weight is not None:
        fix = "fill the weights, or leave these rows out of the log"
        rules.append(missing_rule(ROW_WEIGHT, schema.weight, "the weight is present", fix))
        rules.append(number_rule(ROW_WEIGHT, schema.weight))
        rules.append(bound_rule(ROW_WEIGHT, schema.weight, "minimum", 0.0))
        rules.append(bound_rule(ROW_WEIGHT, schema.weight, "maximum", MAX_WEIGHT))
    if duplicates_count(schema):
        rules.append(
            Rule(
                id="row:duplicate",
                check="duplicate",
                column="",
                source="",
                description="no earlier row of the log has the same ids, time and values in every column; "
                "where equal rows are separate impressions, give the log a column that differs, such as an impression id "
                "(the schema need not name it)",
                fix="",
            )
        )
    return tuple(rules)


def table_rules(schema: LogSchema, entity: Literal["user", "item"]) -> tuple[Rule, ...]:
    """The rules on rows of a side table, whose ids start with the name of the table: ``items.price:minimum``.

    A row that breaks one is quarantined, and impressions of its user or item have no attributes.
    """
    key, column = schema.key_of(entity), schema.table_key(entity)
    assert key is not None
    rules = [missing_rule(key, column, f"the {entity} id is present"), text_rule(key, column)]
    valid_from = schema.valid_from(entity)
    if valid_from is not None:
        rules += rules_of_time(valid_from, VALID_FROM, "valid_from")
    rules += _rules_of(schema.table_fields(entity), schema.table_vectors(entity), schema.table_sequences(entity))
    name = TABLE_OF[entity]
    return tuple(rule.model_copy(update={"id": f"{name}.{rule.id}"}) for rule in rules)


def unmatched_rule(schema: LogSchema, entity: Literal["user", "item"]) -> Rule:
    """The noted rule about impressions whose user or item has no row in its side table."""
    key: EntityKey = getattr(schema.entities, entity)
    name = TABLE_OF[entity]
    when = " that is valid at the time of the impression" if schema.valid_from(entity) is not None else ""
    return Rule(
        id=f"{name}:unmatched",
        check="unmatched",
        column=key.key,
        source=key.source_column,
        severity="warning",
        description=f"the {entity} of the impression has a row in the table {name}{when}; its attributes are missing otherwise: "
        f"add the rows to {name}",
    )


def _rules_of(fields: tuple[LogField, ...], vectors: tuple[Vector, ...], sequences: tuple[Sequence, ...]) -> list[Rule]:
    rules: list[Rule] = []
    for field in fields:
        if field.derived is None:
            rules.extend(field_rules(field))
    for sequence in sequences:
        rules += list_rules(sequence.name, str(sequence.column), sequence.separated_by, MAX_SEQUENCE)
    for vector in vectors:
        rules.append(
            Rule(
                id=f"{vector.name}:vector",
                check="vector",
                column=vector.name,
                source=vector.source_column,
                description=f"{vector.name} is absent or {vector.dim} finite numbers",
                bound=float(vector.dim),
            )
        )
    return rules


def duplicates_count(schema: LogSchema) -> bool:
    """Whether two equal rows are the same impression, written twice.

    Without a user, or with times known only by the hour or by row order, equal rows are normal. A log may also turn out to
    have times only by the hour or the day (:func:`thinktwice.validate.split.split_log`).
    """
    return schema.entities.user is not None and schema.time.format not in ("order", "yymmddhh")


def noted_rules(schema: LogSchema) -> tuple[Rule, ...]:
    """Rules that are counted and reported but do not exclude rows from the clean log."""
    rules = []
    names = [(key.key, key.source_column) for key in (schema.entities.user, schema.entities.item) if key is not None]
    names += [(f.name, f.source_column) for f in schema.logged_fields if f.kind == "categorical" and f.derived is None]
    for name, column in names:
        rules.append(
            Rule(
                id=f"{name}:inexact",
                check="inexact",
                column=name,
                source=column,
                severity="warning",
                description=f"no id or category in {name} is a float too large to represent integers exactly (from 2^53 on, in "
                f"float32 from 2^24): it was rounded before this log was written, write column {column!r} as integers or text",
            )
        )
    user = schema.entities.user
    if user is not None and user.anonymous:
        rules.append(
            Rule(
                id=f"{user.key}:anonymous",
                check="missing",
                column=user.key,
                source=user.source_column,
                severity="info",
                description="the impression has the id of its user; the others are anonymous, as the schema allows, and train the vector of "
                "an unknown user",
            )
        )
    rules += [unmatched_rule(schema, entity) for entity in schema.side_tables]
    derived = [f.name for f in schema.fields if f.derived]
    if derived and schema.time.column is not None and schema.time.zone is None:
        rules.append(
            Rule(
                id="time:zone",
                check="zoneless",
                column=EVENT_TIME,
                source=schema.time.column,
                severity="warning",
                description=f"the time has a zone or offset, or the schema names one; {', '.join(derived)} is now computed in "
                "UTC: add 'zone' to 'time' in the schema (zone: Asia/Tokyo, or zone: UTC if the times are in UTC)",
            )
        )
    return tuple(rules)


def rule_set_version(schema: LogSchema) -> str:
    """Version of the whole catalogue of a log: it changes if and only if some rule changes."""
    texts = [
        rule.model_dump_json(exclude={"fix"}) for rule in (*row_rules(schema), *noted_rules(schema), *profile_rules())
    ]
    for entity in schema.side_tables:
        texts += [rule.model_dump_json(exclude={"fix"}) for rule in table_rules(schema, entity)]
    # The reading of the source determines clicks and instants, so it is part of the rules.
    texts += [schema.time.model_dump_json(), schema.label.model_dump_json(), f"{NUMBER} {EARLIEST_US} {LATEST_US}"]
    texts.append(f"{MAX_TEXT} {NUMBER_LIMIT} {INEXACT_FROM}")
    texts.append(f"budget {schema.quarantine_budget!r}")
    return "rules-" + sha256_text(*texts)[:12]


def _without_id(entity: str) -> str:
    if entity == "user":
        return (
            "to train on rows without a user id, as those of visitors who are not logged in, add 'anonymous: true' to entities.user in the "
            "schema; a larger quarantine_budget only sets these rows aside"
        )
    return (
        f"to train on rows without a {entity} id, leave the {entity} out of the schema (entities.{entity}, its fields, "
        f"sequences and statistics); a larger quarantine_budget only sets these rows aside"
    )
