"""The columns of a prediction log, derived from the schema of the served model: the one place that names them.

Columns that are no model field start with ``log_``. The ids of user and item stand in ``log_user_id`` and ``log_item_id`` for every
looked-up row, whether or not the model takes them as fields.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from thinktwice.errors import SchemaError
from thinktwice.schema import LogSchema

UserIds = Literal["raw", "hashed", "none"]

PART = "served-*.parquet"
REQUEST, AT, BUNDLE, VERSION = "log_request_id", "log_at", "log_bundle_hash", "log_model_version"
USER, ITEM = "log_user_id", "log_item_id"
PROBABILITY, UNCERTAINTY, NUM_PATHS = "log_probability", "log_uncertainty", "log_num_paths"
COLD_USER, COLD_ITEM, DEFAULTED = "log_cold_user", "log_cold_item", "log_defaulted"
USER_IDS = b"thinktwice.user_ids"  # key of the file's metadata; the value is one of UserIds

HEAD = (
    (REQUEST, pa.string()),
    (AT, pa.timestamp("us", "UTC")),
    ("log_arm", pa.string()),
    (VERSION, pa.string()),
    (BUNDLE, pa.string()),
    (USER, pa.string()),
    (ITEM, pa.string()),  # null: a raw row, its values came with the request
    ("log_place", pa.int32()),  # of the candidate or row in its request
    (PROBABILITY, pa.float64()),
    (UNCERTAINTY, pa.float64()),
    (NUM_PATHS, pa.int32()),
    (COLD_USER, pa.bool_()),
    (COLD_ITEM, pa.bool_()),
    ("log_stale", pa.bool_()),
    (DEFAULTED, pa.list_(pa.string())),  # entities whose lookup failed or was late
)
FIELD_TYPES = {
    "categorical": pa.string(),
    "numeric": pa.float64(),
    "sequence": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
}


def log_schema(schema: LogSchema, user_ids: UserIds = "raw") -> pa.Schema:
    """The columns of the log: what identifies a row, its scores and flags, and every field of the model.

    Raises:
        SchemaError: a field of the model has the name of a column of ours.
    """
    fields = schema.model_fields_in_order()
    ours = {name for name, _ in HEAD}
    if taken := [f.name for f in fields if f.name.lower() in ours]:
        raise SchemaError(
            f"field {taken[0]!r} has the name of a column of the prediction log: rename it, or log no predictions"
        )
    columns = [*HEAD, *((f.name, FIELD_TYPES[f.kind]) for f in fields)]
    return pa.schema(columns, metadata={USER_IDS: user_ids.encode()})
