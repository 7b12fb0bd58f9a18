"""Columns of what was served: prediction (a model's row), access (a request at the gateway), exposure and outcome (both joined).

Columns of a prediction outside experiments are a subset of those of the prediction log.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from thinktwice.records.answer import logged_columns
from thinktwice.records.exposure import EXPERIMENT_COLUMNS

PART = "served-*.parquet"  # files of a prediction log
USER_IDS = b"thinktwice.user_ids"  # key of their metadata; the value is one of UserIds
UserIds = Literal["raw", "hashed", "none"]

REQUEST, AT, ARM = "log_request_id", "log_at", "log_arm"  # log_arm: the arm that served, as named by the server
INSTANT = "log_instant"
BUNDLE, VERSION = "log_bundle_hash", "log_model_version"
USER, ITEM, PLACE = "log_user_id", "log_item_id", "log_place"
PROBABILITY, UNCERTAINTY, NUM_PATHS = "log_probability", "log_uncertainty", "log_num_paths"
COUNTERS, USED = "log_counters", "used"  # what became of the counters; the value if they were used
COLD_USER, COLD_ITEM, DEFAULTED = "log_cold_user", "log_cold_item", "log_defaulted"
MS, FALLBACK = "log_ms", "log_fallback"
LABEL, CLICKED_AT = "label", "log_clicked_at"

#: One row of a model, as the prediction log has it; the fields of the model are further columns.
_LOGGED = logged_columns()
PREDICTION_COLUMNS = pa.schema(
    [
        *((name, _LOGGED[name]) for name in (REQUEST, AT, ARM, VERSION, BUNDLE, ITEM, PLACE, PROBABILITY, NUM_PATHS)),
        *EXPERIMENT_COLUMNS,
    ]
)

#: One request at the gateway: a line of its access log, by the names of that log.
ACCESS_COLUMNS = pa.schema(
    [
        ("ts", pa.float64()),  # Unix seconds at the start of the request
        ("request_id", pa.string()),
        ("experiment", pa.string()),
        ("assigned", pa.string()),
        ("enrolled", pa.string()),  # "1" or "0"
        ("served", pa.string()),  # arm that answered, as it named itself; null if none did
        ("code", pa.int32()),
        ("attempts", pa.int32()),
        ("ms", pa.float64()),  # whole duration
    ]
)

#: What an exposure adds to the row of the prediction log whose answer reached the caller.
EXPOSURE_ADDS = pa.schema([(MS, pa.float64()), (FALLBACK, pa.bool_())])

#: What an outcome adds to an exposure.
OUTCOME_ADDS = pa.schema([(LABEL, pa.int8()), (CLICKED_AT, pa.timestamp("us", "UTC"))])

#: One enrolled request, answered or not.
REQUEST_COLUMNS = pa.schema(
    [
        ("request_id", pa.string()),
        ("at", pa.timestamp("us", "UTC")),
        ("experiment", pa.string()),
        ("arm", pa.string()),  # assigned
        ("served", pa.string()),
        ("unit", pa.uint64()),  # null when no server saw the request
        ("code", pa.int32()),
        ("ms", pa.float64()),
        ("attempts", pa.int32()),
    ]
)
