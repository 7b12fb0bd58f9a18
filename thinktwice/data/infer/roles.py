"""What each column of a log is: time, label, user, item, field, or something that the schema leaves out. Every decision has its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from thinktwice.data.infer import names
from thinktwice.data.infer.depend import FOLLOWS, LEAK, PERHAPS, auc_alone, dependence
from thinktwice.data.infer.measure import ColumnFacts, Measured
from thinktwice.errors import DataError
from thinktwice.schema.columns import known_column
from thinktwice.schema.numbers import SPACE
from thinktwice.schema.times import TEXT
from thinktwice.schema.truth import TRUTH_WORDS

Side = Literal["user", "item"]
FieldKind = Literal["categorical", "boolean", "numeric"]  # of one value in a row
SEPARATORS = ("|", ";")  # between the categories of a text
MAX_LIST = 200  # values of a list in one row
MAX_ALLOWED = 20  # values of a small vocabulary that the schema lists
MIN_EACH = 5  # rows in which each of them occurs in the sample, so that the list is likely to be complete
MAX_PER_ID = 0.5  # different values of a field per id, from which it says little more than the id
FEW_NUMBERS = 12  # different whole numbers up to which a column is a category unless its name says otherwise
EPOCH = {"s": (5e8, 4.1e9), "ms": (5e11, 4.1e12), "us": (5e14, 4.1e15)}  # 1985 to 2099


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


def decide(measured: Measured, label: str | None = None) -> Roles:
    """The role of every column.

    Raises:
        DataError: no column can be the label, or the given one cannot.
    """
    facts = measured.facts
    time = _time(measured)
    keys = {entity: _key(measured, entity, time) for entity in ("user", "item")}
    chosen = _label(measured, label, {time.column, *keys.values()})
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
    kinds = _kinds(measured, [name for name in facts if name not in taken])
    key_values = {e: measured.text(k) for e, k in keys.items() if k is not None}
    for name, of in facts.items():
        if name not in taken:
            _place(measured, of, roles, kinds.get(name), key_values, clicked)
    return roles


def looks_like_log(measured: Measured, label: str | None) -> tuple[int, int]:
    """How many of user and item ids a table has, and whether it has a label."""
    time = _time(measured)
    keys = [_key(measured, entity, time) for entity in ("user", "item")]
    try:
        _label(measured, label, {time.column, *keys})
    except DataError:
        return len([k for k in keys if k is not None]), 0
    return len([k for k in keys if k is not None]), 1


def key_of_log(measured: Measured, entity: Side, column: str) -> list[str]:
    """Columns of a side table that may have the ids of the log's ``column``, the likeliest first."""
    same = [name for name in measured.facts if name.lower() == column.lower()]
    named = _key(measured, entity, TimeRole(None, "order", ""))
    alone = [name for name in measured.facts if {"id", "key"} & set(names.glued(name))]
    return list(dict.fromkeys([*same, *([named] if named else []), *alone]))


def place_fields(measured: Measured, entity: Side, sample_key: pl.Series, clicked: pl.Series) -> Roles:
    """The roles of the columns of a side table, whose sample are the rows of the log's sample; only fields, title and the columns
    that are left out are set."""
    roles = Roles(TimeRole(None, "order", ""), LabelRole("", None, "", 0.0))
    kinds = _kinds(measured, list(measured.facts))
    for name, of in measured.facts.items():
        _place(measured, of, roles, kinds.get(name), {entity: sample_key}, clicked, of_table=entity)
    return roles


def _place(
    measured: Measured,
    of: ColumnFacts,
    roles: Roles,
    kind: tuple[FieldKind, str] | None,
    keys: dict[str, pl.Series],
    clicked: pl.Series,
    *,
    of_table: Side | None = None,
) -> None:
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
    separator = _separator(of, text)
    if separator is not None:
        _place_list(of, text, separator, roles, keys, of_table)
        return
    if of.is_list or _is_vector_text(text):
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


def _leak(measured: Measured, role: FieldRole, text: pl.Series, clicked: pl.Series) -> str:
    value = measured.numbers(role.column) if role.kind == "numeric" else text
    auc = auc_alone(value, clicked) if role.entity == "context" or text.n_unique() < 0.2 * len(text) else None
    if auc is not None and max(auc, 1 - auc) >= LEAK:
        return f"suspected leak: alone it predicts the label with an AUC of {auc:.3f}"
    if role.entity == "context" and names.rank(role.column, names.OUTCOME) is not None:
        shown = f" (AUC alone {auc:.3f})" if auc is not None else ""
        return f"suspected leak: its name says that it happens after the impression{shown}"
    return ""


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
        return tuple(sorted(of.vocabulary, key=lambda v: (float(v) if _is_float(v) else float("inf"), v)))
    return tuple(sorted(of.vocabulary))


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_vector_text(text: pl.Series) -> bool:
    head = text.drop_nulls().head(1000)
    return len(head) > 0 and bool(
        head.str.contains(
            r"^\[\s*-?[0-9.]+(?:[eE][-+]?[0-9]+)?(?:\s*[, ]\s*-?[0-9.]+(?:[eE][-+]?[0-9]+)?)+\s*\]$"
        ).all()
    )


def _separator(of: ColumnFacts, text: pl.Series) -> str | None:
    """The separator of a column of several categories, as :meth:`Measured.text` writes it; None for other columns."""
    if of.is_list:
        return "," if not _numbers_inside(of) else None
    if of.numeric or of.is_time:
        return None
    present = text.drop_nulls()
    for separator in SEPARATORS:
        several = present.filter(present.str.contains(separator, literal=True))
        if len(several) < 0.1 * len(present) or len(several) < MIN_EACH:
            continue
        combinations, values = present.n_unique(), present.str.split(separator).explode().n_unique()
        if values < 0.7 * combinations and values < 0.2 * len(present):
            return separator
    return None


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
    role = FieldRole(of.name, "list", entity, f"{why}; {reason}", question, length=min(MAX_LIST, max(20, 2 * most)))
    role.separator = "" if of.is_list else separator
    if entity == "context" and names.rank(of.name, names.OUTCOME) is not None:
        role.leak = "suspected leak: its name says that it happens after the impression"
    roles.fields.append(role)


def _place_vector(
    of: ColumnFacts, text: pl.Series, roles: Roles, keys: dict[str, pl.Series], of_table: Side | None
) -> None:
    sizes = text.drop_nulls().str.strip_chars("[] ").str.count_matches(r"[,\s]+") + 1
    if of.is_list and not _numbers_inside(of):
        roles.left_out[of.name] = "it is a list of lists"
        return
    if not len(sizes) or sizes.n_unique() != 1:
        roles.left_out[of.name] = "it is a list of different lengths; a vector has one length"
        return
    entity, reason, _ = _entity(text, keys) if of_table is None else (of_table, "of the table", "")
    if entity == "context":
        roles.left_out[of.name] = f"it is a vector of neither the user nor the item ({reason})"
        return
    roles.fields.append(FieldRole(of.name, "vector", entity, reason, dim=int(sizes[0])))


def _numbers_inside(of: ColumnFacts) -> bool:
    inner = of.type.value_type if hasattr(of.type, "value_type") else None
    return inner is None or any(word in str(inner) for word in ("int", "float", "double", "decimal"))


def _kinds(measured: Measured, columns: list[str]) -> dict[str, tuple[FieldKind, str]]:
    """Kind and reason of every column that is no time, list or constant. Columns I1, I2, ... of whole numbers share a kind."""
    out: dict[str, tuple[FieldKind, str]] = {}
    for name in columns:
        of = measured.facts[name]
        if of.constant or of.is_list or of.is_time or (not of.numeric and time_format(measured, of) is not None):
            continue
        out[name] = _kind(measured, of)
    families: dict[str, list[str]] = {}
    for name in out:
        prefix = names.family(name)
        if prefix is not None and measured.facts[name].numeric and not of_two(measured.facts[name]):
            families.setdefault(prefix, []).append(name)
    for prefix, members in families.items():
        votes = Counter(out[name][0] for name in members)
        if len(members) > 2 and len(votes) > 1 and votes["numeric"] >= len(members) / 2:
            for name in members:
                if out[name][0] == "categorical":
                    out[name] = ("numeric", f"whole numbers, as most of {prefix}1, {prefix}2, ...")
    return out


def of_two(of: ColumnFacts) -> bool:
    """Whether the column has two values at most."""
    return of.vocabulary is not None and len(of.vocabulary) <= 2


def truth_words(of: ColumnFacts) -> str:
    """What to say about a column of truth values, of text that spells them; empty for another column."""
    spellings = sorted(of.vocabulary or ())
    words = {TRUTH_WORDS.get(value.strip(SPACE).lower()) for value in spellings}
    if None in words or len(words) < 2 or all(_is_float(value) for value in spellings):
        return ""
    written = "" if spellings == ["false", "true"] else f", written {', '.join(spellings)}"
    return f"truth values{written}; a request may send true and false in any of their spellings"


def _kind(measured: Measured, of: ColumnFacts) -> tuple[FieldKind, str]:
    size = "more than 100" if of.vocabulary is None else str(len(of.vocabulary))
    if truth := truth_words(of):
        return "boolean", truth
    if not of.numeric:
        return "categorical", f"text, {size} values"
    if of.vocabulary == {"0", "1"}:
        return "categorical", "0 and 1; with kind: boolean a request may send true and false"
    if of_two(of):
        return "categorical", "two values"
    named = glued_set(of.name)
    if not of.whole:
        return "numeric", "numbers with a fraction"
    few = of.vocabulary is not None and len(of.vocabulary) <= FEW_NUMBERS
    if named & set(names.KEY) or (named & set(names.CATEGORY) and not named & set(names.NUMBER)):
        return "categorical", f"whole numbers, {size} values, and its name says that they are codes"
    if named & set(names.NUMBER):
        return (
            ("categorical", f"{size} whole numbers")
            if few
            else ("numeric", "whole numbers, and its name says that they are measured")
        )
    if few:
        return "categorical", f"{size} whole numbers"
    # Counts crowd at their low end; codes are spread over their range.
    number = measured.numbers(of.name).drop_nulls()
    middle = (of.minimum + of.maximum) / 2
    low = float((number <= middle).mean() or 0)  # type: ignore[arg-type]
    if of.minimum <= 1 and low > 0.8:
        return "numeric", "whole numbers that crowd at their low end, as counts do"
    return "categorical", f"whole numbers, {size} values, spread over their range as codes are"


def glued_set(name: str) -> set[str]:
    """The words of a name."""
    return set(names.glued(name))


def _time(measured: Measured) -> TimeRole:
    """The impression's time: by its values, then its name, then how fine it is."""
    best: tuple[tuple[int, int, int], TimeRole] | None = None
    for of in measured.facts.values():
        form = time_format(measured, of)
        if form is None:
            continue
        position = names.rank(of.name, names.TIME)
        if position is None and form in ("s", "yymmddhh"):
            continue  # integers are only times if their name says so
        distinct = min(measured.text(of.name).n_unique(), 1000)
        score = (int(position is not None or of.is_time), distinct, -(position if position is not None else 99))
        reason = f"{form}: " + (
            "its type" if of.is_time else "its values and its name" if position is not None else "its values"
        )
        if best is None or score > best[0]:
            zoneless = form in ("datetime", "yymmddhh") and not _has_zone(measured, of)
            best = (score, TimeRole(of.name, form, reason, zoneless))
    return best[1] if best else TimeRole(None, "order", "no column looks like a time: the order of the rows is used")


def time_format(measured: Measured, of: ColumnFacts) -> str | None:
    """How a column writes times; None if it has none."""
    if of.present == 0 or of.is_list:
        return None
    if of.is_time:
        return "datetime"
    if not of.numeric:
        head = measured.text(of.name).drop_nulls()
        sample = head.sample(min(2000, len(head)), seed=0) if len(head) else head
        return "datetime" if len(sample) and float(sample.str.contains(TEXT).mean() or 0) > 0.99 else None  # type: ignore[arg-type]
    if not of.whole and of.maximum < 1e8:
        return None
    for form, (low, high) in EPOCH.items():
        if low <= of.minimum and of.maximum <= high:
            return form
    if of.whole and of.minimum >= 70_00_00_00 and of.maximum <= 99_12_31_23:
        return None
    hours = {"hour", "time", "date", "timestamp"} & glued_set(of.name)
    if of.whole and hours and of.minimum >= 10_01_01_00 and of.maximum <= 70_12_31_23:
        text = measured.text(of.name).drop_nulls().head(5000)
        good = text.str.contains(r"^[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?:[01][0-9]|2[0-3])$")
        return "yymmddhh" if bool(good.all()) and len(text) else None
    return None


def _has_zone(measured: Measured, of: ColumnFacts) -> bool:
    zone = getattr(of.type, "tz", None)
    if of.is_time:
        return zone is not None
    head = measured.text(of.name).drop_nulls().head(100)
    return bool(head.str.contains(r"(?:[zZ]|UTC|[+-][0-9]{2}(?::?[0-9]{2})*)$").all()) and not bool(
        head.str.contains(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$").any()
    )


def _key(measured: Measured, entity: str, time: TimeRole) -> str | None:
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


def _label(measured: Measured, given: str | None, taken: set[str | None]) -> LabelRole:
    facts = measured.facts
    if given is not None:
        if given not in facts:
            raise DataError(f"--label {given}: there is no such column. {known_column(given, list(facts))}")
        return _described(measured, facts[given], f"--label {given}")
    binary = [of for of in facts.values() if of.name not in taken and _is_binary(of)]
    named = [(rank, of) for of in binary if (rank := names.rank(of.name, names.LABEL)) is not None]
    if named:
        best = min(named, key=lambda pair: (pair[0], len(pair[1].name)))[1]
        return _described(measured, best, "0 and 1, and its name")
    rated = [
        of
        for of in facts.values()
        if of.name not in taken and of.numeric and names.rank(of.name, names.RATING) is not None
    ]
    rated = [of for of in rated if of.vocabulary is not None and 2 < len(of.vocabulary) <= 21]
    if rated:
        return _described(measured, rated[0], "a rating, by its name and its few values")
    if len(binary) == 1:
        return _described(measured, binary[0], "the only column of 0 and 1")
    constant = [of.name for of in facts.values() if of.constant and names.rank(of.name, names.LABEL) is not None]
    if constant:
        value = next(iter(facts[constant[0]].vocabulary or ()), "none")
        raise DataError(
            f"column {constant[0]!r} looks like the label, but its only value is {value!r}: a click model needs clicks and non-clicks; "
            "add the other rows, or choose another column with --label"
        )
    choices = f" (0 and 1 are in {', '.join(of.name for of in binary[:8])})" if binary else ""
    raise DataError(
        f"no column looks like the label{choices}: name it with --label. The columns are: {', '.join(facts)}"
    )


def _is_binary(of: ColumnFacts) -> bool:
    return of.vocabulary is not None and of.vocabulary in ({"0", "1"}, {"true", "false"}, {"True", "False"})


def _described(measured: Measured, of: ColumnFacts, reason: str) -> LabelRole:
    if of.constant:
        only = next(iter(of.vocabulary or ()), "none")
        raise DataError(
            f"label {of.name!r} has one value, {only!r}: a click model needs clicks and non-clicks; add the other rows"
        )
    if not of.numeric and not _is_binary(of):
        raise DataError(f"label {of.name!r} is not a number: write 0 and 1, or choose another column with --label")
    threshold = None
    if not _is_binary(of):
        threshold = (
            4.0 if of.minimum >= 0 and of.maximum == 5 else round(of.minimum + 0.75 * (of.maximum - of.minimum), 3)
        )
    role = LabelRole(of.name, threshold, reason, 0.0, of.missing + of.not_numbers)
    clicked = clicked_of(measured, role)
    role.click_rate = float(clicked.mean() or 0)  # type: ignore[arg-type]
    return role


def clicked_of(measured: Measured, label: LabelRole) -> pl.Series:
    """1 for a click [S], by the label."""
    text = measured.text(label.column).str.to_lowercase()
    number = measured.numbers(label.column)
    number = pl.select(pl.when(text == "true").then(1.0).when(text == "false").then(0.0).otherwise(number)).to_series()
    return (number >= (1.0 if label.threshold is None else label.threshold)).cast(pl.Int64)
