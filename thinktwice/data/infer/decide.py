"""What each column of a log or of a side table is. Every decision has its reason."""

from __future__ import annotations

import polars as pl

from thinktwice.data.infer import names
from thinktwice.data.infer.fields import place
from thinktwice.data.infer.kinds import kinds_of
from thinktwice.data.infer.labels import clicked_of, find_label
from thinktwice.data.infer.measure import Measured
from thinktwice.data.infer.roles import LabelRole, Roles, Side, TimeRole
from thinktwice.data.infer.times import find_time
from thinktwice.errors import DataError


def decide(measured: Measured, label: str | None = None) -> Roles:
    """The role of every column.

    Raises:
        DataError: no column can be the label, or the given one cannot.
    """
    facts = measured.facts
    time = find_time(measured)
    keys = {entity: find_key(measured, entity, time) for entity in ("user", "item")}
    chosen = find_label(measured, label, {time.column, *keys.values()})
    roles = Roles(time, chosen, keys["user"], keys["item"])
    for entity in ("user", "item"):
        if keys[entity] is None:
            ids = [f.name for f in facts.values() if f.vocabulary is None and "id" in names.glued(f.name)]
            choices = f" (perhaps {', '.join(ids[:4])})" if ids else ""
            roles.questions.append(
                f"No column is clearly the {entity}'s id{choices}. If there is one: entities: {{{entity}: {{key: NAME}}}}"
            )
    clicked = clicked_of(measured, chosen)
    taken = {time.column, chosen.column, roles.user, roles.item}
    kinds = kinds_of(measured, [name for name in facts if name not in taken])
    key_values = {e: measured.text(k) for e, k in keys.items() if k is not None}
    for name, of in facts.items():
        if name not in taken:
            place(measured, of, roles, kinds.get(name), key_values, clicked, items=key_values.get("item"))
    return roles


def looks_like_log(measured: Measured, label: str | None) -> tuple[int, int]:
    """How many of user and item ids a table has, and whether it has a label."""
    time = find_time(measured)
    keys = [find_key(measured, entity, time) for entity in ("user", "item")]
    try:
        find_label(measured, label, {time.column, *keys})
    except DataError:
        return len([k for k in keys if k is not None]), 0
    return len([k for k in keys if k is not None]), 1


def key_of_log(measured: Measured, entity: Side, column: str) -> list[str]:
    """Columns of a side table that may have the ids of the log's ``column``, the likeliest first."""
    same = [name for name in measured.facts if name.lower() == column.lower()]
    named = find_key(measured, entity, TimeRole(None, "order", ""))
    alone = [name for name in measured.facts if {"id", "key"} & set(names.glued(name))]
    return list(dict.fromkeys([*same, *([named] if named else []), *alone]))


def place_fields(
    measured: Measured, entity: Side, sample_key: pl.Series, clicked: pl.Series, items: pl.Series | None
) -> Roles:
    """The roles of the columns of a side table, whose sample are the rows of the log's sample; only fields, title, the columns that are
    left out, and questions are set. ``items``: ids of items in the log's sample."""
    roles = Roles(TimeRole(None, "order", ""), LabelRole("", None, "", 0.0))
    kinds = kinds_of(measured, list(measured.facts))
    for name, of in measured.facts.items():
        place(measured, of, roles, kinds.get(name), {entity: sample_key}, clicked, items=items, of_table=entity)
    return roles


def find_key(measured: Measured, entity: str, time: TimeRole) -> str | None:
    """The id of the user or the item, by name; of several the one with the better word, then with more values."""
    known = names.USER if entity == "user" else names.ITEM
    best: tuple[tuple[int, int, int], str] | None = None
    for of in measured.facts.values():
        position = names.rank(of.name, known)
        named = names.glued(of.name)
        if position is None or of.name == time.column or of.is_list or of.is_time or of.constant:
            continue
        if of.numeric and not of.whole:
            continue
        is_key = bool(set(named) & set(names.KEY)) or len(set(named) & set(known)) == len(named)
        if not is_key or (of.vocabulary is not None and len(of.vocabulary) < 5):
            continue
        score = (-position, measured.text(of.name).n_unique(), -len(of.name))
        if best is None or score > best[0]:
            best = (score, of.name)
    return best[1] if best else None
