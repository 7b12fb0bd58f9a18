"""What training refuses about its rows, before a step is taken."""

from __future__ import annotations

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.errors import DataError
from thinktwice.models.fields import FieldSpace


def check_rows(rows: EncodedRows, fields: FieldSpace, part: str) -> None:
    """Refuse an empty part, a label that is not 0 or 1, and an id outside its vocabulary.

    Raises:
        DataError: the message names the part, the field and the first wrong row.
    """
    if len(rows) == 0:
        raise DataError(f"the {part} part has no rows: choose another split, or give a longer log")
    wrong = np.flatnonzero(~np.isin(rows.label, (0.0, 1.0)))
    if len(wrong):
        raise DataError(
            f"the label of row {wrong[0]} of the {part} part is {rows.label[wrong[0]]:g}, not 0 or 1: build the training set again "
            "from a log whose label is a click"
        )
    for column, (name, size) in enumerate(zip(fields.columns, fields.num_values, strict=True)):
        _check_ids(rows.ids[:, column], size, name, part)
    for name, size in zip(fields.sequences, fields.values_of_sequences, strict=True):
        _check_ids(rows.sequences[name], size, name, part)
    for name in fields.weighted:
        _check_weights(rows.weights.get(name), rows.sequences[name], name, part)


def _check_weights(weights: np.ndarray | None, ids: np.ndarray, name: str, part: str) -> None:
    if weights is None or weights.shape != ids.shape or not (np.isfinite(weights) & ((weights > 0) | (ids == 0))).all():
        raise DataError(
            f"the {part} part has elements of {name!r} without a positive weight: build the training set again, and do not mix files of "
            "two training sets"
        )


def _check_ids(ids: np.ndarray, size: int, name: str, part: str) -> None:
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        at = np.argwhere(outside)[0]
        raise DataError(
            f"row {at[0]} of the {part} part has the id {int(ids[tuple(at)])} in field {name!r}, whose vocabulary has {size} values: "
            "build the training set again, and do not mix files of two training sets"
        )
