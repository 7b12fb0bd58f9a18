"""Drift: live traffic compared with the model's training and validation rows, by field and score.

A field has drifted if live rows are far from the rows of training *and* from those of validation. Statistics of users and items
grow over a log, so validation itself differs from training; traffic like validation still has the quality measured there. Far
means an index above a threshold and above the index that chance gives (:mod:`thinktwice.stats.distances`). Not judged: values
of ids, since new users and items are normal (their training counts are judged), and fields derived from the time, since a log
of an afternoon has only afternoon hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from thinktwice.data.encoded import EncodedRows
from thinktwice.monitor.feedback import FeedbackAssumption
from thinktwice.monitor.served import ServedRows, read_served
from thinktwice.records.served import NUM_PATHS, PROBABILITY, REQUEST, UNCERTAINTY, USER
from thinktwice.release.bundle import Bundle, load_bundle
from thinktwice.release.profile import (
    SECOND_OPINION,
    BundleProfile,
    SampleProfile,
    ScoreProfile,
    read_profile,
    support_bins,
)
from thinktwice.release.profile_bins import (
    MISSING,
    UNKNOWN,
    clusters_of,
    count_labels,
    labels,
    missing_values,
    quantile_bins,
    row_bins,
)
from thinktwice.stats.distances import Distance, distance
from thinktwice.testtime.support import missing_support
from thinktwice.validate.drift import hashed

PSI_DRIFTED, PSI_ALERT = 0.1, 0.25  # PSI, conventional limits: above 0.1 a shift, above 0.25 a large shift
MIN_CLUSTERS = 30  # users (else requests); with fewer, chance cannot be estimated and nothing is judged

What = Literal["values", "support", "score"]


@dataclass(frozen=True)
class Shift:
    """The shift of one distribution.

    Attributes:
        what: ``values`` of a field, its ``support`` (rows by training count of their value), or a ``score``.
        from_train: distance from the rows of training; None for support and scores, which are not comparable on training rows.
        from_valid: distance from the rows of validation.
        unjudged: why it is not judged; empty if it is.
        labels, train, valid, live: bins, and the shares of rows in them.
        facts: (name, before, now) of related numbers.
    """

    name: str
    what: What
    kind: str
    from_train: Distance | None
    from_valid: Distance
    unjudged: str
    labels: tuple[str, ...]
    train: tuple[float, ...]
    valid: tuple[float, ...]
    live: tuple[float, ...]
    facts: tuple[tuple[str, float, float], ...]

    @property
    def nearer(self) -> Distance:
        """The smaller of the two distances."""
        distances = [d for d in (self.from_train, self.from_valid) if d is not None]
        return min(distances, key=lambda d: d.psi)

    def drifted(self, threshold: float = PSI_DRIFTED) -> bool:
        """Whether it is far from training and from validation, and farther than chance explains."""
        distances = [d for d in (self.from_train, self.from_valid) if d is not None]
        return not self.unjudged and all(d.psi > max(threshold, d.noise) for d in distances)

    @property
    def title(self) -> str:
        return f"{self.name} (how often trained)" if self.what == "support" else self.name


@dataclass(frozen=True)
class DriftReport:
    """All comparisons, sorted by distance, descending, within fields, support and scores."""

    model_version: str
    bundle_hash: str
    rows: int  # compared, whole requests
    matching: int  # in the log
    others: Mapping[str, int]  # rows in the log that were not this bundle's, by model version
    requests: int
    clusters: int
    window: tuple[str, str]
    threshold: float
    moved: tuple[Shift, ...]
    feedback: FeedbackAssumption | None = None  # of the event log, if one was set

    @property
    def drifted(self) -> list[Shift]:
        return [m for m in self.moved if m.drifted(self.threshold)]

    def as_json(self) -> dict[str, Any]:
        """The report with its verdict."""
        values = asdict(self) | {"others": dict(self.others), "format": 1}
        if self.feedback is not None:
            values["feedback"]["broken_share"] = self.feedback.broken_share
        values["moved"] = [asdict(m) | {"drifted": m.drifted(self.threshold)} for m in self.moved]
        return values | {"drifted": [m.title for m in self.drifted]}


def drift_of_log(
    log: Path | str,
    bundle_dir: Path | str,
    most_rows: int = 100_000,
    *,
    since: datetime | None = None,
    threshold: float = PSI_DRIFTED,
) -> DriftReport:
    """Compare the rows that a bundle served with its profile.

    Raises:
        DataError: there is no log, or it contains no row that the bundle served.
        BundleError: the bundle is damaged, or has no profile.
    """
    bundle = load_bundle(bundle_dir)
    profile = read_profile(bundle.folder)
    names = [f.name for f in bundle.encoder.row_fields]
    served = read_served(log, most_rows, bundle_hash=bundle.hash, since=since, columns=names)
    return measure_drift(served, profile, bundle, threshold)


def measure_drift(
    served: ServedRows, profile: BundleProfile, bundle: Bundle, threshold: float = PSI_DRIFTED
) -> DriftReport:
    """Compare served rows with the profile of the bundle that served them."""
    encoder, frame = bundle.encoder, served.frame
    rows = encoder.encode_table(_with_user(frame, encoder.user_key).to_arrow())
    requests = _numbered(frame[REQUEST])
    groups = clusters_of(rows.user, requests)
    clusters = len(np.unique(groups))
    too_few = f"only {clusters} users or requests" if clusters < MIN_CLUSTERS else ""
    edges = {f.name: np.asarray(f.norm_edges) for f in profile.fields}
    bins = row_bins(encoder, rows, missing_values(encoder, frame), edges)
    support = support_bins(bundle.engine, encoder, rows)
    by_name = {f.name: f for f in encoder.fields}
    hidden = served.user_ids != "raw"
    fields, supports = [], []
    for f in profile.fields:
        field = by_name[f.name]
        if field.origin == "key" and field.entity == "user" and hidden:
            continue  # hashed ids are all unknown
        names = labels(encoder, field, edges[f.name])
        if field.name == encoder.user_key:
            names = [hashed(n) if n not in ("unknown", "missing", "other values") else n for n in names]
        unjudged = {
            "key": "ids change by nature",
            "derived": "follows the hours of the log",
            "cross": "follows its two fields",
        }.get(field.origin, "")
        live = bins[f.name]
        facts = _facts(field.kind, f.train, f.valid, live)
        fields.append(
            _moved(f.name, "values", field.kind, names, (f.train, f.valid), live, groups, unjudged or too_few, facts)
        )
        if f.support is not None and f.name in support:
            counts = support[f.name]
            share = (
                "never trained",
                f.support.counts[0] / profile.valid_rows,
                float((counts == 0).mean()),
            )
            supports.append(
                _moved(
                    f.name, "support", field.kind, count_labels(), (None, f.support), counts, groups, too_few, (share,)
                )
            )
    scores = [_score(s, _score_values(s.name, frame, rows, bundle), groups, too_few) for s in profile.scores]
    order = [sorted(part, key=lambda m: -m.nearer.psi) for part in (fields, supports, scores)]
    return DriftReport(
        model_version=bundle.manifest.model_version,
        bundle_hash=bundle.hash,
        rows=frame.height,
        matching=served.matching,
        others=served.others,
        requests=int(requests.max()) + 1,
        clusters=clusters,
        window=served.window,
        threshold=threshold,
        moved=tuple(m for part in order for m in part),
    )


def _moved(
    name: str,
    what: What,
    kind: str,
    names: list[str],
    references: tuple[SampleProfile | None, SampleProfile],
    live: np.ndarray,
    groups: np.ndarray,
    unjudged: str,
    facts: tuple[tuple[str, float, float], ...],
) -> Shift:
    train, valid = references
    return Shift(
        name=name,
        what=what,
        kind=kind,
        from_train=None if train is None else distance(train.sample(), live, groups),
        from_valid=distance(valid.sample(), live, groups),
        unjudged=unjudged,
        labels=tuple(names),
        train=() if train is None else _shares(train.counts),
        valid=_shares(valid.counts),
        live=_shares(np.bincount(live, minlength=len(names))),
        facts=facts,
    )


def _facts(
    kind: str, train: SampleProfile, valid: SampleProfile, live: np.ndarray
) -> tuple[tuple[str, float, float], ...]:
    """Shares of missing values (before: the larger of training and validation) and of unknown ones (before: on validation)."""
    position = {"categorical": MISSING, "numeric": 0, "vector": 0, "sequence": 0}[kind]
    rows = max(sum(train.counts), 1), max(sum(valid.counts), 1)
    before = max(train.counts[position] / rows[0], valid.counts[position] / rows[1])
    word = "empty" if kind == "sequence" else "missing"
    missing = ((word, before, float((live == position).mean())),)
    if kind != "categorical":
        return missing
    return (*missing, ("unknown", valid.counts[UNKNOWN] / rows[1], float((live == UNKNOWN).mean())))


def _score_values(name: str, frame: pl.DataFrame, rows: EncodedRows, bundle: Bundle) -> np.ndarray:
    if name == "missing support":
        engine = bundle.engine
        r = engine.reliability.of(rows.ids)
        return missing_support(r, engine.reliability.maskable_fields, engine.config.importance)
    if name == SECOND_OPINION:
        return (frame[NUM_PATHS].to_numpy() > 1).astype(np.float64)
    return frame[{"probability": PROBABILITY, "uncertainty": UNCERTAINTY}[name]].to_numpy()


def _score(s: ScoreProfile, values: np.ndarray, groups: np.ndarray, too_few: str) -> Shift:
    live = quantile_bins(values, np.asarray(s.edges))
    if s.name == SECOND_OPINION:
        names = ["one pass", "more passes"]
    else:
        names = [*(f"below {e:.4g}" for e in s.edges), f"from {s.edges[-1]:.4g}"] if s.edges else ["any"]
    word = "share of rows" if s.name == SECOND_OPINION else "mean"
    facts = ((word, s.mean, float(values.mean())),)
    return _moved(s.name, "score", "number", names, (None, s.valid), live, groups, too_few, facts)


def _with_user(frame: pl.DataFrame, user_key: str | None) -> pl.DataFrame:
    """The rows with the user id in the column of the user key, if the model has no such field."""
    if user_key is None or user_key in frame.columns:
        return frame
    return frame.with_columns(pl.col(USER).alias(user_key))


def _numbered(values: pl.Series) -> np.ndarray:
    """Integer codes [R], equal for equal values."""
    return (values.rank("dense") - 1).fill_null(0).to_numpy().astype(np.int64)


def _shares(counts: Any) -> tuple[float, ...]:
    totals = np.asarray(counts, np.float64)
    return tuple((totals / max(totals.sum(), 1)).tolist())
