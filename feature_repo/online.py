"""Features of rows from the online store, as a predictor would read them now."""

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

READ_KEYS = 2_000  # users or items of one read


def online_features(rows: pa.Table, store: FeatureStore, specs: tuple[TableSpec, ...], where: Path) -> pa.Table:
    """The features of the users and items of R rows, as the online store has them at this moment.

    Args:
        rows: [R] with the key columns of ``specs`` as strings; null and unknown keys have null features.
        store: an open Feast store.
        where: its folder, for errors.

    Returns:
        [R] the columns of all ``specs``, in the order of ``rows``.

    Raises:
        FeatureStoreError: the store does not answer.
    """
    out: dict[str, pa.Array] = {}
    for spec in specs:
        ids = pc.unique(rows[spec.key]).drop_null()
        values: dict[str, list[Any]] = {name: [] for name in spec.features}
        for start in range(0, len(ids), READ_KEYS):
            some = ids.slice(start, READ_KEYS).to_pylist()
            for name, column in _read(store, spec, some, where).items():
                values[name] += column
        place = pc.index_in(rows[spec.key].combine_chunks(), value_set=ids)
        for name, kind in spec.columns:
            out[name] = pa.array(values[name], COLUMN_TYPES[kind]).take(place)
    return pa.table(out)


def _read(store: FeatureStore, spec: TableSpec, ids: list[str], where: Path) -> dict[str, list[Any]]:
    try:
        with quiet():
            answer = store.get_online_features(
                features=[f"{spec.name}:{name}" for name in spec.features],
                entity_rows=[{spec.key: value} for value in ids],
            ).to_dict()
    except Exception as error:  # whatever the online store's client raises
        raise FeatureStoreError(
            f"the online store of {where} does not answer for {spec.name} ({reason(error)}): start it, or score with "
            "--features point-in-time"
        ) from error
    return {name: answer[name] for name in spec.features}
