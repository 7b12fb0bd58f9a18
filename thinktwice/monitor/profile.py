"""What a model was trained on and how its test-time work behaved then, small enough to ship in the bundle.

Shares over rows of the training part per field, and over rows of the validation part for everything that scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import NULL, Encoder
from thinktwice.testtime.engine import Engine, raw_rows

TOP_VALUES = 50  # of a field; all others are one
SCORE_BINS = 20
VALID_ROWS = 20_000  # scored at most
REST, UNKNOWN = "\u0000rest", "\u0000unknown"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldProfile(_Frozen):
    """Shares of the values of one field. For a number a value is the index of its bucket, 0 for a missing one."""

    name: str
    kind: str
    values: tuple[str, ...]  # the shares' names, the rest and the unknown last
    shares: tuple[float, ...]
    missing: float  # share of rows without a value


class Profile(_Frozen):
    """Content of ``profile.json``."""

    rows: int
    fields: tuple[FieldProfile, ...]
    valid_rows: int
    trigger_rate: float  # share of rows with a second opinion
    uncertainty: tuple[float, ...]  # shares in SCORE_BINS equal bins of 0..1
    probability: tuple[float, ...]  # the same
    missing_support: tuple[float, ...]  # the same, of the share of a row's support that training has not seen


def profile_of(encoder: Encoder, train: EncodedRows, valid: EncodedRows, engine: Engine) -> Profile:
    """Profile the rows a model was trained on, and its scores on the first validation rows."""
    columns = encode_shares(encoder, train)
    some = valid.take(slice(0, VALID_ROWS))
    raw = raw_rows(engine, some)
    scored = engine.finish(raw)
    return Profile(
        rows=len(train),
        fields=columns,
        valid_rows=len(some),
        trigger_rate=float((raw.num_paths > 1).mean()),
        uncertainty=histogram(scored.uncertainty),
        probability=histogram(scored.probability),
        missing_support=histogram(raw.missing),
    )


def encode_shares(encoder: Encoder, rows: EncodedRows) -> tuple[FieldProfile, ...]:
    """Shares of the values of every field of some encoded rows."""
    out = []
    for column, f in enumerate(encoder.columns):
        counts = np.bincount(rows.ids[:, column], minlength=encoder.num_values[column]).astype(float)
        if f.kind == "numeric":
            names = [str(i) for i in range(len(counts))]
            out.append(_shares(f.name, f.kind, names[1:], counts[1:], 0.0, 0.0, counts[0]))
            continue
        words = [encoder.value_of(f.name, i) or "" for i in range(1, len(counts))]
        missing = sum(counts[1 + i] for i, word in enumerate(words) if word == NULL)
        order = [i for i in np.argsort(-counts[1:], kind="stable").tolist() if words[i] != NULL]
        top = order[:TOP_VALUES]
        rest = sum(counts[1 + i] for i in order[TOP_VALUES:])
        out.append(_shares(f.name, f.kind, [words[i] for i in top], counts[1:][top], rest, counts[0], missing))
    for f in encoder.sequences:
        lengths = (rows.sequences[f.name] != 0).sum(axis=1)
        counts = np.bincount(lengths, minlength=f.length + 1).astype(float)
        names = [str(i) for i in range(f.length + 1)]
        out.append(_shares(f.name, f.kind, names, counts, 0.0, 0.0, 0.0))
    for f in encoder.vectors:
        missing = float(np.isnan(rows.vectors[f.name]).any(axis=1).sum())
        out.append(_shares(f.name, f.kind, ["present"], np.array([len(rows) - missing]), 0.0, 0.0, missing))
    return tuple(out)


def histogram(values: np.ndarray) -> tuple[float, ...]:
    """Shares of values of 0..1 in SCORE_BINS equal bins."""
    counts, _ = np.histogram(np.clip(values, 0.0, 1.0), bins=SCORE_BINS, range=(0.0, 1.0))
    return tuple((counts / max(len(values), 1)).tolist())


def _shares(
    name: str, kind: str, names: list[str], counts: np.ndarray, rest: float, unknown: float, missing: float
) -> FieldProfile:
    every: list[Any] = [*counts.tolist(), rest, unknown]
    total = max(sum(every) + missing, 1.0)
    return FieldProfile(
        name=name,
        kind=kind,
        values=(*names, REST, UNKNOWN),
        shares=tuple(v / total for v in every),
        missing=missing / total,
    )
