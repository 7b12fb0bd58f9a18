"""Live traffic against what the model was trained on: which fields have moved, and what that does to its test-time work.

Distances with their noise: the population stability index (PSI) of two samples of one distribution is about (k - 1)(1/n + 1/m) for k
bins, so a field has drifted only where the index is above both a threshold and what chance alone gives. Rows of one request
share their user and context, so n is the number of requests for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import NULL, Encoder
from thinktwice.monitor.profile import REST, SCORE_BINS, UNKNOWN, FieldProfile, Profile, encode_shares, histogram
from thinktwice.validate.drift import psi

THRESHOLD = 0.1  # PSI; the usual words: above 0.1 something has moved, above 0.25 much has
SURE = 0.999  # quantile of the noise that an index must exceed besides


@dataclass(frozen=True)
class Moved:
    """How far one distribution has moved.

    Attributes:
        psi: population stability index; noise: what chance alone exceeds once in a thousand.
        js: Jensen-Shannon distance, 0..1 (base 2).
        before, now: a share that is worth seeing beside: of missing and unknown values for a field, else the mean.
    """

    name: str
    kind: str
    psi: float
    noise: float
    js: float
    before: float
    now: float

    @property
    def drifted(self) -> bool:
        return self.psi > max(THRESHOLD, self.noise)


@dataclass(frozen=True)
class DriftReport:
    """All fields and scores; ``trigger_rate`` before and now."""

    rows: int
    requests: int
    fields: tuple[Moved, ...]
    scores: tuple[Moved, ...]
    trigger_rate: tuple[float, float]

    @property
    def drifted(self) -> list[str]:
        return [m.name for m in (*self.fields, *self.scores) if m.drifted]

    def as_json(self) -> dict[str, Any]:
        """The report with its verdict."""
        every = {
            part: [asdict(m) | {"drifted": m.drifted} for m in getattr(self, part)] for part in ("fields", "scores")
        }
        return {
            "rows": self.rows,
            "requests": self.requests,
            **every,
            "trigger_rate": {"before": self.trigger_rate[0], "now": self.trigger_rate[1]},
            "threshold": THRESHOLD,
        }


def measure_drift(served: pl.DataFrame, profile: Profile, encoder: Encoder, support: np.ndarray) -> DriftReport:
    """Compare served rows with the profile of the bundle that served them.

    Args:
        served: rows of the prediction log.
        profile: of the bundle.
        encoder: of the bundle; live values fall into the bins of training.
        support: missing support [R] of the served rows, as the engine counts it.
    """
    rows = encoder.encode_table(served.to_arrow())
    requests = served["log_request_id"].n_unique()
    live = {f.name: f for f in encode_shares(encoder, rows)}
    entity = {f.name: f.entity for f in encoder.fields}
    fields = []
    for before in profile.fields:
        now = _aligned(before, live[before.name], served, rows, encoder)
        effective = served.height if entity[before.name] == "item" else requests
        shares = (*before.shares, before.missing)
        fields.append(
            _moved(
                before.name,
                before.kind,
                np.asarray(shares),
                now,
                profile.rows,
                effective,
                before.missing + before.shares[-1],
                float(now[-1] + now[-2]),
            )
        )
    scores = [
        _moved(
            name,
            "score",
            np.asarray(old),
            np.asarray(histogram(new)),
            profile.valid_rows,
            requests,
            _mean(old),
            float(new.mean()),
        )
        for name, old, new in (
            ("probability", profile.probability, served["log_probability"].to_numpy()),
            ("uncertainty", profile.uncertainty, served["log_uncertainty"].to_numpy()),
            ("missing support", profile.missing_support, support),
        )
    ]
    trigger = float((served["log_num_paths"].to_numpy() > 1).mean())
    return DriftReport(served.height, requests, tuple(fields), tuple(scores), (profile.trigger_rate, trigger))


def _aligned(
    before: FieldProfile, now: FieldProfile, served: pl.DataFrame, rows: EncodedRows, encoder: Encoder
) -> np.ndarray:
    """Shares of the live rows in the bins of the profile, missing values last."""
    found = dict(zip(now.values, now.shares, strict=True))
    if before.kind != "categorical":
        return np.asarray([*(found.get(name, 0.0) for name in before.values), now.missing])
    # The most frequent live values need not be those of training: count the profile's own.
    column = next(c for c, f in enumerate(encoder.columns) if f.name == before.name)
    ids = rows.ids[:, column]
    total = max(len(ids), 1)
    missing = float((served[before.name].is_null()).sum()) / total
    named = [float((ids == encoder.index_of(before.name, name)).sum()) / total for name in before.values[:-2]]
    unknown = float((ids == 0).sum()) / total
    if encoder.index_of(before.name, NULL) == 0:
        unknown -= missing  # training saw no missing value, so a missing one is encoded as unknown
    rest = 1.0 - sum(named) - unknown - missing
    assert before.values[-2:] == (REST, UNKNOWN)
    return np.asarray([*named, max(rest, 0.0), max(unknown, 0.0), missing])


def _moved(
    name: str,
    kind: str,
    before: np.ndarray,
    now: np.ndarray,
    rows_before: int,
    rows_now: int,
    seen_before: float,
    seen_now: float,
) -> Moved:
    used = (before > 0) | (now > 0)
    index = psi(before * rows_before, now * rows_now) or 0.0
    spread = 1 / max(rows_before, 1) + 1 / max(rows_now, 1)
    noise = float(chi2.ppf(SURE, max(int(used.sum()) - 1, 1)) * spread)
    distance = float(jensenshannon(before + 1e-15, now + 1e-15, base=2))
    return Moved(name, kind, index, noise, distance, seen_before, seen_now)


def _mean(shares: Sequence[float]) -> float:
    return float(np.dot(shares, (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS))
