"""What thinking twice did on test rows: which rows got evidence or a second look, what that changed, in which requests."""

from __future__ import annotations

import numpy as np

from thinktwice.data.encoded import EncodedRows
from thinktwice.evaluate.extra_work_record import STEPS, ThoughtTwice
from thinktwice.selection.trial_model import TrialModel
from thinktwice.stats.metrics import row_logloss
from thinktwice.stats.significance import clusters_of, paired_mean
from thinktwice.testtime.calibrate import sigmoid
from thinktwice.testtime.config import TestTimeConfig
from thinktwice.testtime.scores import Raw
from thinktwice.versioned import MeasuredInterval

REQUEST_US = 3_600_000_000  # a log names no requests: the rows of one user within an hour of the clock count as one


def thought_twice(
    trial_model: TrialModel,
    config: TestTimeConfig,
    raw: Raw,
    off: np.ndarray,
    test: EncodedRows,
    *,
    candidate: str,
    ships: bool,
) -> ThoughtTwice:
    """Measure a configuration from its raw scores of ``test`` [R] and the plain log-odds ``off`` [R]."""
    engine, cluster = trial_model.engine(config), clusters_of(test.user)
    final = engine.finish(raw).logit
    first = engine.first_logit(raw)
    looked = raw.escalated
    loss = {name: row_logloss(test.label, z) for name, z in (("off", off), ("first", first), ("final", final))}
    request = _requests(test)
    second = None
    if looked.any():
        second = MeasuredInterval.of(
            paired_mean((loss["final"] - loss["first"])[looked], clusters_of(test.user[looked]))
        )
    changed = looked if looked.any() else raw.counted
    before = first if looked.any() else off
    moved = np.abs(sigmoid(final) - sigmoid(before))[changed]
    return ThoughtTwice(
        candidate=candidate,
        ships=ships,
        rows=len(test),
        looked=int(looked.sum()),
        counted=int(raw.counted.sum()),
        requests=int(request.max(initial=-1)) + 1,
        requests_looked=len(np.unique(request[looked])),
        first_change=MeasuredInterval.of(paired_mean(loss["first"] - loss["off"], cluster)),
        second_change=second,
        moved=tuple(float(q) for q in np.quantile(moved, STEPS)) if len(moved) else (),
    )


def _requests(test: EncodedRows) -> np.ndarray:
    """Number of each row's request [R]; without users every row is one."""
    if not (test.user >= 0).any():
        return np.arange(len(test))
    keys = np.stack([test.user, test.time // REQUEST_US], axis=1)
    return np.asarray(np.unique(keys, axis=0, return_inverse=True)[1]).reshape(-1)
