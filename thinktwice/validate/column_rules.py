"""The rules of a single column: what every value of it must be, as the schema declares the column."""

from __future__ import annotations

from typing import Literal

from thinktwice.frozen import Frozen
from thinktwice.schema.fields import EVENT_TIME, LABEL, ElementWeights, LogField, TimeColumn
from thinktwice.schema.limits import MAX_TEXT, NUMBER_LIMIT
from thinktwice.schema.log import LogSchema
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


def missing_rule(column: str, source: str, description: str, fix: str = "") -> Rule:
    fix = fix or "fill the values, or set nullable: true for the field"
    return Rule(id=f"{column}:missing", check="missing", column=column, source=source, description=description, fix=fix)


def text_rule(column: str, source: str) -> Rule:
    description = f"{column} has at most {MAX_TEXT} characters, none of them NUL, and is finite where it is a number"
    return Rule(id=f"{column}:text", check="text", column=column, source=source, description=description)


def number_rule(column: str, source: str) -> Rule:
    description = f"{column} is absent or a number between -{NUMBER_LIMIT:g} and {NUMBER_LIMIT:g}"
    return Rule(id=f"{column}:number", check="number", column=column, source=source, description=description)


def bound_rule(column: str, source: str, check: Literal["minimum", "maximum"], bound: float) -> Rule:
    words = "at least" if check == "minimum" else "at most"
    description = f"{column} is {words} {bound:g}"
    return Rule(id=f"{column}:{check}", check=check, column=column, source=source, description=description, bound=bound)


def label_rules(schema: LogSchema) -> list[Rule]:
    source = schema.label.column
    rules = [
        missing_rule(LABEL, source, "the label is present", "fill the labels, or leave these rows out of the log"),
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


def time_rules(schema: LogSchema) -> list[Rule]:
    if schema.time.column is None:
        return []
    future = Rule(
        id="time:future",
        check="future",
        column=EVENT_TIME,
        source=schema.time.column,
        description="the time is not after the moment of the check",
    )
    return [*rules_of_time(schema.time, EVENT_TIME, "time"), future]


def rules_of_time(time: TimeColumn, column: str, name: str) -> list[Rule]:
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


def list_rules(
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


def field_rules(field: LogField) -> list[Rule]:
    if field.kind == "list":
        rules_of_list = list_rules(
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
        rules.append(missing_rule(field.name, field.source_column, f"{field.name} is present"))
    if field.kind == "numeric":
        rules.append(number_rule(field.name, field.source_column))
        if field.minimum is not None:
            rules.append(bound_rule(field.name, field.source_column, "minimum", field.minimum))
        if field.maximum is not None:
            rules.append(bound_rule(field.name, field.source_column, "maximum", field.maximum))
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
    rules.append(text_rule(field.name, field.source_column))
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
