"""The exposure: what the gateway decided about a request, as each row of the prediction log repeats it.

The gateway sends its decision in headers and the server logs it beside what it served. The unit is logged only as a keyed
hash. The definition is this class; the columns are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

EXPERIMENT, ASSIGNED, ENROLLED = "log_experiment", "log_assigned_arm", "log_enrolled"
UNIT, BUCKET, ATTEMPT, SHADOW = "log_unit", "log_bucket", "log_attempt", "log_shadow"


@dataclass(frozen=True)
class Exposure:
    """The decision of the gateway about one request. A field is None if its header was missing or invalid.

    Attributes:
        experiment: name, or one of ``none``, ``holdout``, ``tester``, ``override``.
        assigned: assigned arm; another one may have served (``log_arm``).
        enrolled: whether the request counts.
        unit: keyed 64-bit hash of the unit.
        bucket: 0..9999, of the unit.
        attempt: 1 for the first server that the gateway tried.
        shadow: whether this is a copy whose answer the gateway discards.
    """

    experiment: str | None = None
    assigned: str | None = None
    enrolled: bool | None = None
    unit: int | None = None
    bucket: int | None = None
    attempt: int | None = None
    shadow: bool = False

    def values(self) -> tuple[str | bool | int | None, ...]:
        """Values of the columns of :data:`EXPERIMENT_COLUMNS`, in order."""
        return self.experiment, self.assigned, self.enrolled, self.unit, self.bucket, self.attempt, self.shadow


NO_EXPOSURE = Exposure()  # of a request that did not come through a gateway

#: What an exposure adds to each row of the prediction log.
EXPERIMENT_COLUMNS = pa.schema(
    [
        (EXPERIMENT, pa.string()),
        (ASSIGNED, pa.string()),
        (ENROLLED, pa.bool_()),
        (UNIT, pa.uint64()),
        (BUCKET, pa.int16()),
        (ATTEMPT, pa.int16()),
        (SHADOW, pa.bool_()),
    ]
)
