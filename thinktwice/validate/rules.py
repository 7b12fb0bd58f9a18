"""The rule catalogue: requirements on rows and on a log as a whole, derived only from the schema of the log.

Row rules decide which rows are clean (:mod:`thinktwice.validate.split`); profile rules judge the log as a whole on its
profile table (:mod:`thinktwice.validate.profile`). The same catalogue generates the Great Expectations suites.

A row that breaks any row rule is quarantined. Row rules are *critical* for the clean log (not one clean row may break
one); for the run as a whole quarantined rows are a warning until their share exceeds the budget.
"""

from __future__ import annotations

from typing import Literal

from thinktwice.files import sha256_text
from thinktwice.frozen import Frozen
from thinktwice.schema.fields import (
    EVENT_TIME,
    LABEL,
    ROW_WEIGHT,
    TABLE_OF,
    VALID_FROM,
    ElementWeights,
    EntityKey,
    LogField,
    Sequence,
    TimeColumn,
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
from thinktwice.schema.times import FORMS

Severity = Literal["critical", "warning", "info"]
Check = Literal[
    "splittable",
    "number",
    "binary",
    "time",
    "window",
    "future",
    "missing",
    "text",
    "allowed",
    "boolean",
    "minimum",
    "maximum",
    "vector",
    "duplicate",
    "inexact",
    "zoneless",
    "unmatched",
    "length",
    "separator",
    "uneven",
    "no number",
    "negative",
]
#: Checks of the weights of the elements of a list.
UNEVEN: Literal["uneven"] = "uneven"
NO_NUMBER: Literal["no number"] = "no number"
NEGATIVE: Literal["negative"] = "negative"
WEIGHT_CHECKS = (UNEVEN, NO_NUMBER, NEGATIVE)

#: Forms of the time in the source, by ``time.format``.
_TIME_FORMS = {
    "s": "Unix seconds",
    "ms": "Unix milliseconds",
    "us": "Unix microseconds",
    "datetime": f"a time: {FORMS}",
    "yymmddhh": "two digits each of year, month, day and hour",
}

MIN_JUDGED_ROWS = 1_000  # with fewer rows in a slice PSI and KS are only noise
MIN_JUDGED_LABELS = 50  # clicks and non-clicks required for a single-field AUC


class Rule(Frozen):
    """One row rule. ``column`` is the canonical column it reads, ``source`` the column of the raw log; ``fix``: what a user
    can do about rows that break it."""

    id: str
    check: Check
    column: str
    source: str
    description: str
    severity: Severity = "critical"
    allowed: tuple[str, ...] | None = None
    bound: float | None = None  # minimum, maximum: inclusive; vector: its length; length: of a list, at most
    separator: str | None = None  # of a list: the rule holds for its elements
    fix: str = "correct the rows or the rule, then check the rows again with `thinktwice data replay`"


class ProfileRule(Frozen):
    """One rule on the profile table: every non-null value of ``column`` is within ``minimum`` .. ``maximum``."""

    id: str
    column: str
    description: str
    severity: Severity
    minimum: float | None = None
    maximum: float | None = None
    fix: str  # what a user can do


UNSPLITTABLE = Rule(
    id="record:unsplittable",
    check="splittable",
    column="",
    source="",
    description="the record can be split into the columns of the log",
)


def row_rules(schema: LogSchema) -> tuple[Rule, ...]:
    """Every row rule of a log, in a stable order: label, time, keys, fields, vectors, extras, duplicates."""
    rules = [UNSPLITTABLE, *_label_rules(schema), *_time_rules(schema)]
    for entity in ("user", "item"):
        key: EntityKey | None = getattr(schema.entities, entity)
        if key is not None:
            if not key.anonymous:
                rules.append(_missing(key.key, key.source_column, f"the {entity} id is present", _without_id(entity)))
            rules.append(_text(key.key, key.source_column))
    rules += _rules_of(schema.logged_fields, schema.logged_vectors, schema.logged_sequences)
    for name, column in (("propensity", schema.propensity), ("truth", schema.truth)):
        if column is not None:
            rules.append(_number(name, column))
            rules.append(_bound(name, column, "minimum", 0.0))
            rules.append(_bound(name, column, "maximum", 1.0))
    if schema.weight is not None:
        fix = "fill the weights, or leave these rows out of the log"
        rules.append(_missing(ROW_WEIGHT, schema.weight, "the weight is present", fix))
        rules.append(_number(ROW_WEIGHT, schema.weight))
        rules.append(_bound(ROW_WEIGHT, schema.weight, "minimum", 0.0))
        rules.append(_bound(ROW_WEIGHT, schema.weight, "maximum", MAX_WEIGHT))
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
    rules = [_missing(key, column, f"the {entity} id is present"), _text(key, column)]
    valid_from = schema.valid_from(entity)
    if valid_from is not None:
        rules += _times_of(valid_from, VALID_FROM, "valid_from")
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
            rules.extend(_field_rules(field))
    for sequence in sequences:
        rules += _list_rules(sequence.name, str(sequence.column), sequence.separated_by, MAX_SEQUENCE)
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


def profile_rules() -> tuple[ProfileRule, ...]:
    """The rules on the profile table. Their columns are null if not applicable.

    Drift between two parts of one log is a warning: logs drift, and the model is trained on both parts. Drift against
    an earlier log's profile beyond the usual limits is critical.
    """
    return (
        ProfileRule(
            id="log:click_rate",
            column="both_labels",
            description="the log has clicks and non-clicks",
            severity="critical",
            minimum=1.0,
            fix="check the label's column and threshold in the schema: a click model needs clicks and non-clicks",
        ),
        ProfileRule(
            id="field:leak",
            column="judged_auc",
            description="no field alone separates clicks from non-clicks (held-out AUC), as only a copy of the label would",
            severity="critical",
            maximum=0.99,
            fix="leave the field out: it repeats the label, or is known only after the click",
        ),
        ProfileRule(
            id="drift:psi_from_reference",
            column="psi_from_reference",
            description="the field is distributed as in the reference log (population stability index)",
            severity="critical",
            maximum=0.25,
            fix="find out what changed at the source; if the change is intended, compare with a newer reference",
        ),
        ProfileRule(
            id="volume:from_reference",
            column="volume_ratio",
            description="the log has between a fifth and five times the rows of the reference log",
            severity="critical",
            minimum=0.2,
            maximum=5.0,
            fix="check that the log is complete, or compare with a newer reference",
        ),
        ProfileRule(
            id="field:suspicious",
            column="judged_auc",
            description="no field alone predicts clicks suspiciously well (held-out AUC)",
            severity="warning",
            maximum=0.9,
            fix="check that the field is known before the impression; if it is not, leave it out",
        ),
        ProfileRule(
            id="field:constant",
            column="judged_distinct",
            description="the field has at least two values",
            severity="warning",
            minimum=2.0,
            fix="leave the field out of the schema: a constant carries no information",
        ),
        ProfileRule(
            id="field:identifier",
            column="judged_distinct_share",
            description="the values of an attribute repeat; a field that differs in nearly every row carries no information",
            severity="warning",
            maximum=0.9,
            fix="leave the field out of the schema, or declare it as the key of the user or the item",
        ),
        ProfileRule(
            id="drift:psi",
            column="judged_psi",
            description="the field is distributed as in the first half of the log (population stability index)",
            severity="warning",
            maximum=0.25,
            fix="find out what changed: repair a fault at the source; if the change is permanent, train on the later part only; for values that come and go, such as campaigns and new products, do nothing",
        ),
        ProfileRule(
            id="drift:ks",
            column="judged_ks",
            description="the number is distributed as in the reference (Kolmogorov-Smirnov distance)",
            severity="warning",
            maximum=0.2,
            fix="check whether a unit or a source changed; for numbers that grow with time, such as prices and counts, do nothing",
        ),
        ProfileRule(
            id="drift:nulls",
            column="null_share_change",
            description="the share of missing values is as in the reference",
            severity="warning",
            maximum=0.1,
            fix="find out when the values disappeared or first appeared, and train on the part of the log that has them",
        ),
        ProfileRule(
            id="drift:click_rate",
            column="click_rate_ratio",
            description="the click rate is between half and twice that of the reference",
            severity="warning",
            minimum=0.5,
            maximum=2.0,
            fix="find out whether the label or the traffic changed; with a split by time the model is evaluated at the later rate",
        ),
        ProfileRule(
            id="time:unit",
            column="first_year",
            description="the log starts after 1995; earlier is usually a wrong time.format",
            severity="warning",
            minimum=1995.0,
            fix="check time.format in the schema (s, ms or us)",
        ),
    )


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


def _missing(column: str, source: str, description: str, fix: str = "") -> Rule:
    fix = fix or "fill the values, or set nullable: true for the field"
    return Rule(id=f"{column}:missing", check="missing", column=column, source=source, description=description, fix=fix)


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


def _text(column: str, source: str) -> Rule:
    description = f"{column} has at most {MAX_TEXT} characters, none of them NUL, and is finite where it is a number"
    return Rule(id=f"{column}:text", check="text", column=column, source=source, description=description)


def _number(column: str, source: str) -> Rule:
    description = f"{column} is absent or a number between -{NUMBER_LIMIT:g} and {NUMBER_LIMIT:g}"
    return Rule(id=f"{column}:number", check="number", column=column, source=source, description=description)


def _bound(column: str, source: str, check: Literal["minimum", "maximum"], bound: float) -> Rule:
    words = "at least" if check == "minimum" else "at most"
    description = f"{column} is {words} {bound:g}"
    return Rule(id=f"{column}:{check}", check=check, column=column, source=source, description=description, bound=bound)


def _label_rules(schema: LogSchema) -> list[Rule]:
    source = schema.label.column
    rules = [
        _missing(LABEL, source, "the label is present", "fill the labels, or leave these rows out of the log"),
        Rule(
            id="label:number",
            check="number",
            column=LABEL,
            source=source,
            description="the label is a number, or true or false (1 or 0)",
        ),
    ]
    if schema.label.threshold is None:
        rules.append(
            Rule(
                id="label:binary",
                check="binary",
                column=LABEL,
                source=source,
                description="the label is 0 or 1 (or true or false); for other numbers set in the schema the value from which they count as a "
                f"click: label: {{column: {source}, threshold: ...}}",
            )
        )
    return rules


def _time_rules(schema: LogSchema) -> list[Rule]:
    if schema.time.column is None:
        return []
    future = Rule(
        id="time:future",
        check="future",
        column=EVENT_TIME,
        source=schema.time.column,
        description="the time is not after the moment of the check",
    )
    return [*_times_of(schema.time, EVENT_TIME, "time"), future]


def _times_of(time: TimeColumn, column: str, name: str) -> list[Rule]:
    source = str(time.column)
    return [
        Rule(
            id=f"{name}:parsable",
            check="time",
            column=column,
            source=source,
            description=f"the time is present and reads as {_TIME_FORMS[time.format]} ({name}.format {time.format!r})",
        ),
        Rule(
            id=f"{name}:window",
            check="window",
            column=column,
            source=source,
            description="the time lies between 1970 and 2100",
        ),
    ]


def _list_rules(
    name: str,
    source: str,
    separator: str,
    length: int,
    *,
    nullable: bool = True,
    allowed: tuple[str, ...] | None = None,
) -> list[Rule]:
    """The rules on a list of categories or ids and on its elements."""
    words: list[tuple[Check, str]] = [
        ("text", f"each element of {name} has at most {MAX_TEXT} characters, none of them NUL"),
        ("length", f"{name} has at most {length} elements"),
        (
            "separator",
            f"no element of {name} contains the separator {separator!r} (quotes around elements are not read): choose another separator "
            "when the log is written, or write a list column",
        ),
    ]
    if not nullable:
        words.insert(0, ("missing", f"{name} has an element"))
    if allowed is not None:
        words.append(("allowed", f"each element of {name} is one of its {len(allowed)} allowed values"))
    return [
        Rule(
            id=f"{name}:{check}",
            check=check,
            column=name,
            source=source,
            description=description,
            allowed=allowed if check == "allowed" else None,
            bound=float(length) if check == "length" else None,
            separator=separator,
        )
        for check, description in words
    ]


def _weight_rules(weights: ElementWeights, of: LogField) -> list[Rule]:
    """The rules on the weights of the elements of a list."""
    fix = f"correct the rows, or leave the weights out of all rows that have none (each element of {of.name} then counts alike)"
    words: list[tuple[str, Check, str]] = [
        ("length", UNEVEN, f"{weights.name} is absent or has one weight for each element of {of.name}"),
        ("number", NO_NUMBER, f"each element of {weights.name} is a number below {NUMBER_LIMIT:g}"),
        ("minimum", NEGATIVE, f"each element of {weights.name} is at least 0"),
    ]
    return [
        Rule(
            id=f"{weights.name}:{name}",
            check=check,
            column=weights.name,
            source=weights.source_column,
            description=description,
            fix=f"{fix}, then check the rows again with `thinktwice data replay`",
        )
        for name, check, description in words
    ]


def _field_rules(field: LogField) -> list[Rule]:
    if field.kind == "list":
        rules_of_list = _list_rules(
            field.name,
            field.source_column,
            field.separated_by,
            field.max_length,
            nullable=field.nullable,
            allowed=field.allowed,
        )
        return rules_of_list if field.weights is None else [*rules_of_list, *_weight_rules(field.weights, field)]
    rules: list[Rule] = []
    if not field.nullable:
        rules.append(_missing(field.name, field.source_column, f"{field.name} is present"))
    if field.kind == "numeric":
        rules.append(_number(field.name, field.source_column))
        if field.minimum is not None:
            rules.append(_bound(field.name, field.source_column, "minimum", field.minimum))
        if field.maximum is not None:
            rules.append(_bound(field.name, field.source_column, "maximum", field.maximum))
        return rules
    if field.kind == "boolean":
        rules.append(
            Rule(
                id=f"{field.name}:boolean",
                check="boolean",
                column=field.name,
                source=field.source_column,
                description=f"{field.name} is absent, or true or false (or yes and no, t and f, y and n, on and off, 1 and 0)",
                fix="correct these rows, or make the field categorical if it has other values, then check the rows again with "
                "`thinktwice data replay`",
            )
        )
        return rules
    rules.append(_text(field.name, field.source_column))
    if field.allowed is not None:
        rules.append(
            Rule(
                id=f"{field.name}:allowed",
                check="allowed",
                column=field.name,
                source=field.source_column,
                description=f"{field.name} is absent or one of its {len(field.allowed)} allowed values",
                allowed=field.allowed,
            )
        )
    return rules
