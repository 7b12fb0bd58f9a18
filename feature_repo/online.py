"""Features of rows from the online store, as a predictor would read them at this time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.store import quiet
from thinktwice.data.feature_tables import TableSpec
from thinktwice.data.point_in_time import COLUMN_TYPES
from thinktwice.errors import FeatureStoreError, reason

if TYPE_CHECKING:
    from feast import FeatureStore

READ_KEYS = 2_000  # users or items per read


def online_features(rows: pa.Table, store: FeatureStore, specs: tuple[TableSpec, ...], where: Path) -> pa.Table:
    """The current features of the users and items of R rows in the online store.

    Args:
        rows: [R] with the key columns of ``specs`` as strings; null and unknown keys have null features.
        store: an open Feast store.
        where: its folder, for error messages.

    Returns:
        [R] the columns of all ``specs``, in the order of ``rows``.

    Raises:
        FeatureStoreError: the store does not respond.
    """
    out: dict[str, pa.Array] = {}
    for spec in specs:
        ids = pc.unique(rows[spec.key]).drop_null()
        values: dict[str, list[Any]] = {name: [] for name in spec.features}
        for start in range(0, len(ids), READ_KEYS):
            batch = ids.slice(start, READ_KEYS).to_pylist()
            for name, column in _read(store, spec, batch, where).items():
                values[name] += column
        positions = pc.index_in(rows[spec.key].combine_chunks(), value_set=ids)
        for name, kind in spec.columns:
            out[name] = pa.array(values[name], COLUMN_TYPES[kind]).take(positions)
    return pa.table(out)


def _read(store: FeatureStore, spec: TableSpec, ids: list[str], where: Path) -> dict[str, list[Any]]:
    try:
        with quiet():
            answer = store.get_online_features(
                features=[f"{spec.name}:{name}" for name in spec.features],
                entity_rows=[{spec.key: value} for value in ids],
            ).to_dict()
    except Exception as error:  # any exception of the online store's client
        raise FeatureStoreError(
            f"the online store of {where} does not answer for {spec.name} ({reason(error)}): start it, or score with "
            "--features point-in-time"
        ) from error
    return {name: answer[name] for name in spec.features}
