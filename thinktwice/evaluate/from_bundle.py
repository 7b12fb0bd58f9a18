"""Score raw rows with a bundle: encoded by its own encoder, scored by its own engine, as a server would."""

from __future__ import annotations

import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import SchemaError
from thinktwice.evaluate.measure import ScoreColumn
from thinktwice.release.bundle import Bundle
from thinktwice.testtime.engine import raw_rows
from thinktwice.threads import reproducible


def misfit(bundle: Bundle, rows: pl.DataFrame) -> str:
    """Why the bundle cannot score ``rows``, naming the columns; empty when it can."""
    missing = [f.name for f in bundle.encoder.fields if f.name not in rows.columns]
    if missing:
        return f"the rows lack its columns {', '.join(missing)}"
    for f in bundle.encoder.fields:
        found = rows.schema[f.name]
        if not _readable(f.kind, found):
            return f"it reads column {f.name} as {f.kind} and the rows hold {found}"
    return ""


def _readable(kind: str, found: pl.DataType) -> bool:
    """Whether a field of ``kind`` finds its values in such a column. A vocabulary of texts knows no number, for example, so
    that a model that looks numbers up in it would compete with that field blanked out."""
    if kind in ("sequence", "vector"):
        if not isinstance(found, (pl.List, pl.Array)):
            return False
        number = found.inner.is_numeric()
        return number if kind == "vector" else not number
    if isinstance(found, (pl.List, pl.Array)):
        return False
    return found.is_numeric() == (kind == "numeric")


@reproducible()
def score_bundle(bundle: Bundle, rows: pl.DataFrame, *, key: str, label: str) -> tuple[ScoreColumn, EncodedRows]:
    """Scores of ``rows`` as a column of an evaluation, and the rows as the bundle encoded them.

    Raises:
        SchemaError: the rows do not fit the bundle.
    """
    reason = misfit(bundle, rows)
    if reason:
        raise SchemaError(
            f"bundle {bundle.manifest.model_version} cannot score these rows: {reason}; give rows of its schema"
        )
    encoded = bundle.encoder.encode_table(rows.to_arrow())
    scored = bundle.engine.finish(raw_rows(bundle.engine, encoded))
    return ScoreColumn(
        key, label, scored.logit, scored.probability, 1 + scored.path_rows / max(len(encoded), 1)
    ), encoded
