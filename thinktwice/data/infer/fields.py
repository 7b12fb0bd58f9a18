"""The fields: whose each is, what it may contain, whether it may leak the label, and which columns are none."""

from __future__ import annotations

from typing import Literal

import polars as pl

from thinktwice.data.infer import names
from thinktwice.data.infer.depend import FOLLOWS, LEAK, PERHAPS, auc_alone, dependence
from thinktwice.data.infer.item_ids import question_about_ids
from thinktwice.data.infer.kinds import FEW_NUMBERS, MIN_EACH, is_float, is_vector_text, list_separator, numbers_inside
from thinktwice.data.infer.measure import ColumnFacts, Measured
from thinktwice.data.infer.roles import FieldKind, FieldRole, Roles, Side
from thinktwice.data.infer.times import time_format

MAX_LIST = 200  # values of a list in one row
MAX_ALLOWED = 20  # values of a small vocabulary that the schema lists
MAX_PER_ID = 0.5  # different values of a field per id, from which it says little more than the id


def place(
    measured: Measured,
    of: ColumnFacts,
    roles: Roles,
    kind: tuple[FieldKind, str] | None,
    keys: dict[str, pl.Series],
    clicked: pl.Series,
    *,
    items: pl.Series | None,
    of_table: Side | None = None,
) -> None:
    """Enter a column in ``roles``: among the fields, as title, propensity or split, or among the columns that are left out.

    Args:
        kind: kind of its values and the reason; None for times, lists and constants.
        keys: ids of the user and the item in the rows of the sample, by entity.
        clicked: 1 for a click, of the same rows.
        items: ids of items in the log's sample, None if it has none.
        of_table: the entity of the side table that the column is in.
    """
    name = of.name
    if of.constant:
        only = next(iter(of.vocabulary or ()), None)
        roles.left_out[name] = "it has no value" if only is None else f"it has one value, {only[:40]!r}"
        return
    if of_table is None and of.vocabulary is not None and {w.lower() for w in of.vocabulary} <= set(names.SPLIT):
        roles.split = name
        roles.left_out[name] = f"it names parts of the log: give --split column:{name} to split by it"
        return
    text = measured.text(name)
    if items is not None and of_table != "item" and (question := question_about_ids(of, text, items)):
        roles.questions.append(question)
    separator = list_separator(of, text)
    if separator is not None:
        _place_list(of, text, separator, roles, keys, of_table)
        return
    if of.is_list or is_vector_text(text):
        _place_vector(of, text, roles, keys, of_table)
        return
    if of.is_time or (kind is None and time_format(measured, of) is not None):
        roles.left_out[name] = "it is a second time; hour and weekday are derived from the impression's time"
        return
    assert kind is not None
    distinct = text.n_unique()
    if (
        of_table is None
        and distinct > 0.98 * len(text)
        and len(text) > 200
        and not (kind[0] == "numeric" and not of.whole)
    ):
        roles.left_out[name] = "it is different in (almost) every row, as the id of an impression is"
        return
    if (
        of_table is None
        and roles.propensity is None
        and names.rank(name, names.PROPENSITY) is not None
        and of.minimum > 0
        and of.maximum <= 1
        and of.numeric
    ):
        roles.propensity = name
        return
    entity, reason, question = _entity(text, keys) if of_table is None else (of_table, "of the table", "")
    if roles.title is None and entity == "item" and kind[0] == "categorical" and _is_title(name, text, keys["item"]):
        roles.title = name
        return
    if (
        entity != "context"
        and kind[0] == "categorical"
        and distinct > MAX_PER_ID * keys[entity].n_unique()
        and distinct > FEW_NUMBERS
    ):
        roles.left_out[name] = (
            f"it has a value per {keys[entity].n_unique() / distinct:.1f} ids of the {entity}, so it says little more than the id"
        )
        return
    role = FieldRole(name, kind[0], entity, f"{kind[1]}; {reason}", question)
    if kind[0] == "numeric":
        role.minimum = 0.0 if of.minimum >= 0 else None
        role.reason += f"; {of.minimum:g} to {of.maximum:g}"
    elif kind[0] == "categorical":
        role.allowed = _allowed(of, text)
    if of.missing:
        role.reason += f"; {of.missing / of.rows:.1%} missing"
    role.leak = _leak(measured, role, text, clicked)
    roles.fields.append(role)


def _place_list(
    of: ColumnFacts, text: pl.Series, separator: str, roles: Roles, keys: dict[str, pl.Series], of_table: Side | None
) -> None:
    sizes = text.drop_nulls().str.count_matches(separator, literal=True) + 1
    most = int(sizes.max() or 1)  # type: ignore[arg-type]
    if most > MAX_LIST:
        roles.left_out[of.name] = f"it has up to {most} values in a row, and a list at most {MAX_LIST}"
        return
    entity, reason, question = _entity(text, keys) if of_table is None else (of_table, "of the table", "")
    why = (
        f"a list of up to {most} values"
        if of.is_list
        else f"text of up to {most} values with {separator!r} between them"
    )
    if not of.is_list and _are_weights(text, separator):
        question = "; ".join(filter(None, (question, _WEIGHTS.format(of.name))))
    role = FieldRole(of.name, "list", entity, f"{why}; {reason}", question, length=min(MAX_LIST, max(20, 2 * most)))
    role.separator = "" if of.is_list else separator
    if entity == "context" and names.rank(of.name, names.OUTCOME) is not None:
        role.leak = "suspected leak: its name says that it happens after the impression"
    roles.fields.append(role)


_WEIGHTS = (
    "Are its numbers the weights of the elements of a list? Then remove this field and add 'weights: {}' to that list."
)


def _are_weights(text: pl.Series, separator: str) -> bool:
    """Whether all elements are numbers of at least 0, some with a fraction."""
    elements = text.drop_nulls().str.split(separator).explode().str.strip_chars()
    read = elements.cast(pl.Float64, strict=False)
    return read.null_count() == 0 and bool((read >= 0).all()) and bool((read % 1 != 0).any())


def _place_vector(
    of: ColumnFacts, text: pl.Series, roles: Roles, keys: dict[str, pl.Series], of_table: Side | None
) -> None:
    sizes = text.drop_nulls().str.strip_chars("[] ").str.count_matches(r"[,\s]+") + 1
    if of.is_list and not numbers_inside(of):
        roles.left_out[of.name] = "it is a list of lists"
        return
    if not len(sizes) or sizes.n_unique() != 1:
        roles.left_out[of.name] = (
            "it is a list of different lengths; a vector has one length. If it has the weights of the elements of a list, add "
            f"'weights: {of.name}' to that field"
        )
        return
    entity, reason, _ = _entity(text, keys) if of_table is None else (of_table, "of the table", "")
    if entity == "context":
        roles.left_out[of.name] = f"it is a vector of neither the user nor the item ({reason})"
        return
    roles.fields.append(FieldRole(of.name, "vector", entity, reason, dim=int(sizes[0])))


def _entity(text: pl.Series, keys: dict[str, pl.Series]) -> tuple[Literal["user", "item", "context"], str, str]:
    """The entity of a field, the measured reason, and a question if the measurement is not clear."""
    found = {entity: dependence(key, text) for entity, key in keys.items()}
    strength = {entity: of.strength for entity, of in found.items() if of is not None}
    if not strength:
        why = "too few users and items occur twice to see whose it is" if keys else "there is no user or item"
        question = "entity: user, item or context (default)?" if keys else ""
        return "context", why, question
    best = max(strength, key=lambda entity: strength[entity])
    shown = ", ".join(f"{value:.0%} by the {entity}" for entity, value in strength.items())
    if strength[best] >= FOLLOWS:
        assert best in ("user", "item")
        return best, f"decided {shown}", ""  # type: ignore[return-value]
    question = (
        f"entity: {best}, if it is a property of the {best} that changes; context if it is known per impression"
        if strength[best] >= PERHAPS
        else ""
    )
    return "context", f"decided {shown}", question


def _is_title(name: str, text: pl.Series, item: pl.Series) -> bool:
    words = text.drop_nulls().head(2000)
    spaced = float(words.str.contains(" ").mean() or 0)  # type: ignore[arg-type]
    return names.rank(name, names.TITLE) is not None and text.n_unique() > 0.8 * item.n_unique() and spaced > 0.2


def _allowed(of: ColumnFacts, text: pl.Series) -> tuple[str, ...] | None:
    if of.vocabulary is None or len(of.vocabulary) > MAX_ALLOWED:
        return None
    counts = dict(text.drop_nulls().value_counts().iter_rows())
    if any(counts.get(value, 0) < MIN_EACH for value in of.vocabulary):
        return None
    if of.numeric:
        return tuple(sorted(of.vocabulary, key=lambda v: (float(v) if is_float(v) else float("inf"), v)))
    return tuple(sorted(of.vocabulary))


def _leak(measured: Measured, role: FieldRole, text: pl.Series, clicked: pl.Series) -> str:
    value = measured.numbers(role.column) if role.kind == "numeric" else text
    auc = auc_alone(value, clicked) if role.entity == "context" or text.n_unique() < 0.2 * len(text) else None
    if auc is not None and max(auc, 1 - auc) >= LEAK:
        return f"suspected leak: alone it predicts the label with an AUC of {auc:.3f}"
    if role.entity == "context" and names.rank(role.column, names.OUTCOME) is not None:
        shown = f" (AUC alone {auc:.3f})" if auc is not None else ""
        return f"suspected leak: its name says that it happens after the impression{shown}"
    return ""
