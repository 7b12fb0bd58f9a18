"""The roles of columns as the text of a schema file; each line has a comment with its reason, and questions stand as comments."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import yaml

from thinktwice.data.infer.measure import Measured
from thinktwice.data.infer.roles import FieldRole, Roles
from thinktwice.schema.fields import RESERVED, RESERVED_KEYS
from thinktwice.schema.times import derive, on_present
from thinktwice.schema.values import one_array
from thinktwice.validate.parse import log_times

DAY_US = 86_400_000_000
BUDGET = 0.01  # the default of quarantine_budget
ASK = "?"  # marks a comment that asks


class _Names:
    """Names of fields: each valid, and different from all others in more than upper and lower case."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, column: str, *, key: bool = False, item: bool = False) -> str:
        name = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_")
        name = re.sub(r"_{2,}", "_", name) or "field"
        name = (name if name[0].isalpha() else f"f_{name}")[:60].rstrip("_")
        reserved = RESERVED | RESERVED_KEYS if key else RESERVED
        if name.lower() in reserved or (item and name.endswith("_y")):
            name = f"{name}_value"
        base, number = name, 2
        while name.lower() in self._used:
            name, number = f"{base}_{number}", number + 1
        self._used.add(name.lower())
        return name


def schema_text(measured: Measured, roles: Roles, where: str, schema_name: str) -> str:
    """The schema file."""
    given = _Names()
    keys = {e: given.of(c, key=True) for e, c in (("user", roles.user), ("item", roles.item)) if c is not None}
    lines = [
        f"# Inferred from {where} ({measured.rows:,} rows). It can be used as it is. Comments say why; a comment with '{ASK}' asks.",
        f"name: {_scalar(schema_name)}",
        *_time(measured, roles),
        *_label(roles),
        *_entities(measured, roles, keys),
    ]
    lines += _tables(roles, keys)
    of_tables = [field for table in roles.tables for field in table.fields]
    fields = _fields([*roles.fields, *of_tables], given)
    derived = _derived(measured, roles, given)
    if fields or derived:
        lines += [
            "fields:" if any(not line.lstrip().startswith("#") for line in (*fields, *derived)) else "# fields:",
            *fields,
            *derived,
        ]
    lines += _sequences(roles, keys, given)
    vectors = [f for f in (*roles.fields, *of_tables) if f.kind == "vector"]
    if vectors:
        lines.append("vectors:")
        for field in vectors:
            name = given.of(field.column, item=True)
            lines += [
                f"  # {field.reason}",
                f"  - {_flow(_named(name, field.column) | {'entity': field.entity, 'dim': field.dim})}",
            ]
    lines += _statistics(measured, roles)
    if roles.propensity is not None:
        lines += [
            "# between 0 and 1, and its name: the probability with which this item was shown",
            f"propensity: {_scalar(roles.propensity)}",
        ]
    lines += _budget(measured, roles)
    for column, why in roles.left_out.items():
        lines.append(f"# left out: {_scalar(column)}: {_plain(why)}")
    for table in roles.tables:
        lines += [f"# left out of {table.side}s: {_scalar(c)}: {_plain(why)}" for c, why in table.left_out.items()]
    lines += [f"# {ASK} {_plain(question)}" for question in roles.questions]
    return "\n".join(lines) + "\n"


def _flow(value: Mapping[str, object]) -> str:
    return yaml.safe_dump(
        dict(value), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    ).strip()


def _scalar(text: str) -> str:
    return yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**9).strip()[1:-1]


def _plain(text: str) -> str:
    """Text of a comment: one line."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _named(name: str, column: str) -> dict[str, object]:
    return {"name": name} if name == column else {"name": name, "column": column}


def _time(measured: Measured, roles: Roles) -> list[str]:
    time = roles.time
    if time.column is None:
        return [f"# {time.reason}", "time: {format: order}"]
    lines = [f"# {time.reason}", f"time: {_flow({'column': time.column, 'format': time.format})}"]
    if time.zoneless:
        lines.append(
            f"# {ASK} The times have no offset and are read as UTC. If they are local, add their zone, e.g. zone: Europe/Berlin"
        )
    return lines


def _label(roles: Roles) -> list[str]:
    label = roles.label
    written: dict[str, object] = {"column": label.column}
    lines = [f"# {label.reason}; {label.click_rate:.2%} of the rows are clicks"]
    if label.threshold is not None:
        written["threshold"] = label.threshold
        lines.append(f"# {ASK} From which value on is it a click? {label.threshold:g} is a guess.")
    return [*lines, f"label: {_flow(written)}"]


def _entities(measured: Measured, roles: Roles, keys: dict[str, str]) -> list[str]:
    if not keys:
        return []
    lines = ["entities:"]
    for entity, name in keys.items():
        column = roles.user if entity == "user" else roles.item
        assert column is not None
        written: dict[str, object] = {"key": name} if name == column else {"key": name, "column": column}
        title = next((table.title for table in roles.tables if table.side == "item"), roles.title)
        if entity == "item" and title is not None:
            written["title"] = title
        of = measured.facts[column]
        missing = f", {of.missing:,} rows without one" if of.missing else ""
        lines += [
            f"  # by its name; {measured.text(column).n_unique():,} values in the sample{missing}",
        ]
        if entity == "user" and of.missing:
            lines.append(
                f"  # {ASK} Are these the rows of anonymous visitors? Then add 'anonymous: true': they train and get the vector of an "
                "unknown user. Otherwise they are quarantined."
            )
        lines.append(f"  {entity}: {_flow(written)}")
    return lines


def _tables(roles: Roles, keys: dict[str, str]) -> list[str]:
    used = [t for t in roles.tables if t.title is not None or not all(f.leak for f in t.fields)]
    lines = [f"# left out: the table {t.path}: none of its columns can be used" for t in roles.tables if t not in used]
    lines += ["tables:"] if used else []
    for table in used:
        column = roles.user if table.side == "user" else roles.item
        written: dict[str, object] = {"path": table.path}
        if table.key != column:
            written["key"] = table.key
        if table.valid_from is not None:
            written["valid_from"] = {"column": table.valid_from, "format": table.format}
        lines += [
            f"  # {table.rows:,} rows; {table.share:.1%} of the log's sample have one",
            f"  {table.side}s: {_flow(written)}",
        ]
    return lines


def _fields(fields: list[FieldRole], given: _Names) -> list[str]:
    lines: list[str] = []
    for field in fields:
        if field.kind == "vector":
            continue
        name = given.of(field.column, item=field.entity != "context")
        written = _named(name, field.column)
        if field.entity != "context":
            written["entity"] = field.entity
        if field.kind != "categorical":
            written["kind"] = field.kind
        if field.separator not in ("", "|"):
            written["separator"] = field.separator
        if field.length > 20:
            written["length"] = field.length
        if field.minimum is not None:
            written["minimum"] = int(field.minimum)
        if field.allowed is not None:
            written["allowed"] = list(field.allowed)
        lines.append(f"  # {_plain(field.reason)}")
        if field.question:
            lines.append(f"  # {ASK} {_plain(field.question)}")
        if field.leak:
            lines.append(
                f"  # {ASK} {field.leak}. Remove the '# ' of the next line if it is known before the impression:"
            )
        lines.append(("  # " if field.leak else "  ") + f"- {_flow(written)}")
    return lines


def _derived(measured: Measured, roles: Roles, given: _Names) -> list[str]:
    micros = _sample_times(measured, roles)
    if micros is None:
        return []
    lines = []
    for what, words in (("hour", "hours"), ("weekday", "weekdays")):
        values = on_present(micros, lambda instants, what=what: derive(what, instants)).drop_nulls()  # type: ignore[misc]
        taken = any(f.column.lower() == what and not f.leak for f in roles.fields)
        if values.n_unique() > 1 and not taken:
            lines += [
                f"  # of the impression's time; {values.n_unique()} {words} occur",
                f"  - {_flow({'name': given.of(what), 'derived': what})}",
            ]
    return lines


def _sequences(roles: Roles, keys: dict[str, str], given: _Names) -> list[str]:
    if "user" not in keys or "item" not in keys:
        return []
    return [
        "sequences:",
        "  # the latest items that the user clicked, before the impression",
        f"  - {_flow({'name': given.of('recent_items'), 'of': keys['item'], 'length': 20})}",
    ]


def _statistics(measured: Measured, roles: Roles) -> list[str]:
    entities = [e for e, column in (("user", roles.user), ("item", roles.item)) if column is not None]
    if not entities:
        return []
    micros = _sample_times(measured, roles)
    instants = np.zeros(0, np.int64) if micros is None else micros.drop_nulls().to_numpy()
    days = float(np.ptp(instants)) / DAY_US if len(instants) else 0.0
    window = 30 if days > 90 else 7 if days > 3 else 1
    written: dict[str, object] = {"windows_days": [window, 0]}
    if len(entities) == 1:
        written["entities"] = entities
    return [f"# the log covers {days:,.1f} days; 0 is since its beginning", f"statistics: {_flow(written)}"]


def _sample_times(measured: Measured, roles: Roles) -> pl.Series | None:
    """Instants of the sample in microseconds, null for what is no time."""
    from thinktwice.schema import LabelColumn, LogField, LogSchema, TimeColumn

    if roles.time.column is None:
        return None
    schema = LogSchema(
        name="sample",
        time=TimeColumn(column=roles.time.column, format=roles.time.format),  # type: ignore[arg-type]
        label=LabelColumn(),
        fields=(LogField(name="x"),),
    )
    values = one_array(measured.sample.column(roles.time.column))
    return log_times(schema, values.dictionary_decode() if pa.types.is_dictionary(values.type) else values).micros


def _budget(measured: Measured, roles: Roles) -> list[str]:
    """A higher quarantine_budget, if the pass over the log has found more rows to quarantine than the default allows."""
    facts = measured.facts
    bad = {f"without {column}": facts[column].missing for column in (roles.user, roles.item) if column is not None}
    bad["without a valid label"] = roles.label.invalid
    bad |= {
        f"where {f.column} is no number": facts[f.column].not_numbers
        for f in roles.fields
        if f.kind == "numeric" and not f.leak
    }
    bad["that cannot be parsed"] = measured.unparsable
    if roles.time.column is not None:
        bad["without a time"] = facts[roles.time.column].missing
    share = sum(bad.values()) / max(1, measured.rows + measured.unparsable)
    if share <= 0.8 * BUDGET:
        return []
    words = ", ".join(f"{count:,} {what}" for what, count in bad.items() if count)
    return [
        f"# {ASK} Up to {share:.1%} of the rows will be quarantined ({words}) and not used. Is that intended? Otherwise correct the log or the schema.",
        f"quarantine_budget: {min(1.0, round(share * 1.25 + 0.005, 3))}",
    ]
