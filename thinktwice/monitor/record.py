"""The columns of a prediction log, derived from the schema of the served model; defined only here.

Columns that are not model fields start with ``log_``. ``log_user_id`` and ``log_item_id`` contain the ids of user and item of
every looked-up row, whether or not they are fields of the model.
"""

from __future__ import annotations

import pyarrow as pa

from thinktwice.errors import SchemaError
from thinktwice.records.answer import Answered, logged_columns
from thinktwice.records.served import USER_IDS, UserIds
from thinktwice.schema import LogSchema

HEAD = logged_columns()
FIELD_TYPES = {
    "categorical": pa.string(),
    "numeric": pa.float64(),
    "sequence": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
    "weights": pa.list_(pa.float64()),
}


def log_schema(
    schema: LogSchema, user_ids: UserIds = "raw", answer: type = Answered, counters: tuple[str, ...] = ()
) -> pa.Schema:
    """The columns of the log: keys of a row, its scores and flags, and every field of the model.

    Args:
        answer: class of the answers; its fields are logged.
        counters: names of the counters that are logged.

    Raises:
        SchemaError: a field of the model has the name of a log column.
    """
    fields = schema.row_fields()
    ours = logged_columns(answer)
    if clashes := [f.name for f in fields if f.name.lower() in ours]:
        raise SchemaError(
            f"field {clashes[0]!r} has the name of a column of the prediction log: rename it, or log no predictions"
        )
    columns = [
        *ours.items(),
        *((f.name, FIELD_TYPES[f.kind]) for f in fields),
        *((name, pa.float32()) for name in counters),
    ]
    return pa.schema(columns, metadata={USER_IDS: user_ids.encode()})
