"""Random networks, counters and histories that fit a model of these tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.models.test_logit_network import network
from thinktwice.data.evidence import Evidence, History
from thinktwice.models.backbone import Backbone
from thinktwice.testtime.config import Correction, SecondLook, TestTimeConfig
from thinktwice.testtime.evidence.correction import CorrectionNetwork, Standard
from thinktwice.testtime.evidence.retrieval import NUM_FEATURES, Neighbours, Retrieval
from thinktwice.testtime.extras import Extras
from thinktwice.testtime.opinions.config import Retrieve
from thinktwice.testtime.triggers import Always, AnyTrigger

COUNTERS = 5
ITEM = "f1"


def extras(model: Backbone, *, last: float = 0.02) -> Extras:
    """A correction and a retrieval; changes of about ``last`` times a hundred logits."""
    rng = np.random.default_rng(0)
    items = model.fields.num_values[model.fields.columns.index(ITEM)]
    ids = rng.integers(0, items, (items, 30)).astype(np.int32)
    weights = np.where(ids > 0, rng.normal(0, 0.2, ids.shape), 0).astype(np.float16)
    near = Neighbours(ids, weights, rng.random(items).astype(np.float32))
    correction = CorrectionNetwork(_standard(COUNTERS, rng), network(1, 1 + 2 * COUNTERS, last=last))
    width = 1 + 2 * COUNTERS + NUM_FEATURES
    retrieval = Retrieval(near, _standard(NUM_FEATURES, rng), network(2, width, last=last))
    return Extras(correction=correction, retrieval=retrieval)


def _standard(width: int, rng: np.random.Generator) -> Standard:
    return Standard(rng.normal(size=width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32))


def corrected() -> TestTimeConfig:
    return TestTimeConfig(mode="corrected", correction=Correction())


def retrieving(trigger: AnyTrigger | None = None) -> TestTimeConfig:
    look = SecondLook(trigger=trigger or Always(), opinion=Retrieve(item_field=ITEM))
    return TestTimeConfig(mode="retrieve", correction=Correction(), second_look=look)


def counters(rows: int, seed: int = 0, *, unknown: float = 0.2) -> np.ndarray:
    """Counters [rows, 5], some of them unknown; every fifth row knows none."""
    rng = np.random.default_rng(seed)
    out = rng.normal(0, 2, (rows, COUNTERS)).astype(np.float32)
    out[rng.random(out.shape) < unknown] = np.nan
    out[4::5] = np.nan
    return out


def history(model: Backbone, rows: int, outcomes: int = 60, seed: int = 0) -> History:
    """The outcomes of one user, some of them on unknown items."""
    rng = np.random.default_rng(seed)
    items = model.fields.num_values[model.fields.columns.index(ITEM)]
    return History.of_user(rng.integers(0, items, outcomes).astype(np.int32), rng.random(outcomes) < 0.5, rows)


class Counted:
    """A reader of a history that counts how often it was asked."""

    def __init__(self, found: History | None) -> None:
        self.found, self.calls = found, 0

    def __call__(self) -> History | None:
        self.calls += 1
        return self.found


def evidence(values: np.ndarray, read: Callable[[], History | None] | None = None) -> Evidence:
    return Evidence(values, read)
