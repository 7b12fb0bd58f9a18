"""The profile of a model's training and validation data, small enough to ship in the bundle.

Values and buckets are counted over rows of the training part and of the validation part. What training rows cannot show is
measured on the validation part only: unknown values, training counts of the values of new rows, scores.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from thinktwice.data.encoded import EncodedRows
from thinktwice.data.encoder import Encoder
from thinktwice.data.training_set import TrainingSet
from thinktwice.errors import BundleError, reason
from thinktwice.files import read_json
from thinktwice.release.profile_bins import (
    COUNT_BINS,
    NORM_BINS,
    SCORE_BINS,
    clusters_of,
    count_bins,
    missing_values,
    num_bins,
    quantile_bins,
    quantile_edges,
    row_bins,
    vector_norms,
)
from thinktwice.stats.distances import Sample, sample
from thinktwice.testtime.engine import Engine, raw_rows

PROFILE_FILE = "profile.json"  # absent in bundles of older versions

TRAIN_ROWS = 200_000  # maximum, subsampled evenly over time
VALID_ROWS = 20_000
ScoreName = Literal["probability", "uncertainty", "missing support", "second opinion"]
SECOND_OPINION: ScoreName = "second opinion"
MAX_ROWS = 2**53  # larger counts are not exact as a float
SIGNIFICANT_DIGITS = 6  # of every number


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SampleProfile(_Frozen):
    """A :class:`thinktwice.stats.distances.Sample` as stored."""

    counts: tuple[Annotated[int, Field(ge=0, le=MAX_ROWS)], ...]
    effective: Annotated[float, Field(ge=0)]
    uneven: Annotated[float, Field(ge=0)]

    @staticmethod
    def of(bins: np.ndarray, clusters: np.ndarray, size: int) -> SampleProfile:
        stored = sample(bins, clusters, size)
        counts = tuple(int(c) for c in stored.counts)
        return SampleProfile(counts=counts, effective=_short(stored.effective), uneven=_short(stored.uneven))

    def sample(self) -> Sample:
        return Sample(np.asarray(self.counts, np.float64), self.effective, self.uneven)


class FieldProfile(_Frozen):
    """Rows of training and validation in the bins of one field (:mod:`thinktwice.release.profile_bins`)."""

    name: str
    norm_edges: tuple[float, ...]  # of a vector
    train: SampleProfile
    valid: SampleProfile
    support: SampleProfile | None  # validation rows by training count of their value; unprotected fields only


class ScoreProfile(_Frozen):
    """The distribution of a score over validation rows, in its own quantiles."""

    name: ScoreName
    edges: tuple[float, ...]
    valid: SampleProfile
    mean: float


class BundleProfile(_Frozen):
    """Content of ``profile.json``."""

    format: Annotated[int, Field(ge=1, le=1, strict=True)] = 1
    train_rows: PositiveInt
    valid_rows: PositiveInt
    fields: tuple[FieldProfile, ...]
    scores: tuple[ScoreProfile, ...]


def profile_of(data: TrainingSet, encoder: Encoder, engine: Engine) -> BundleProfile:
    """Profile a training set, and an engine's scores of its validation rows."""
    train, _ = _subsample(data.part("train"), TRAIN_ROWS)
    part = data.part_with_evidence("valid") if engine.reads_counters else data.part("valid")
    valid, positions = _subsample(part, VALID_ROWS)
    missing = {name: mask[positions] for name, mask in missing_values(encoder, data.rows("valid")).items()}
    edges = {f.name: _edges(vector_norms(train, f.name), NORM_BINS) for f in encoder.vectors}
    before = row_bins(encoder, train, {}, edges)
    after = row_bins(encoder, valid, missing, edges)
    support = support_bins(engine, encoder, valid)
    groups = clusters_of(train.user), clusters_of(valid.user)
    fields = []
    for f in encoder.fields:
        size = num_bins(encoder, f, edges.get(f.name, np.zeros(0)))
        fields.append(
            FieldProfile(
                name=f.name,
                norm_edges=tuple(edges.get(f.name, np.zeros(0)).tolist()),
                train=SampleProfile.of(before[f.name], groups[0], size),
                valid=SampleProfile.of(after[f.name], groups[1], size),
                support=SampleProfile.of(support[f.name], groups[1], COUNT_BINS) if f.name in support else None,
            )
        )
    raw = raw_rows(engine, valid)
    scored = engine.finish(raw)
    values: dict[ScoreName, np.ndarray] = {
        "probability": scored.probability,
        "uncertainty": scored.uncertainty,
        "missing support": raw.missing,
        SECOND_OPINION: (raw.num_paths > 1).astype(np.float64),
    }
    return BundleProfile(
        train_rows=len(train),
        valid_rows=len(valid),
        fields=tuple(fields),
        scores=tuple(_score(name, value, groups[1]) for name, value in values.items()),
    )


def read_profile(folder: Path | str) -> BundleProfile:
    """The profile in a bundle.

    Raises:
        BundleError: it has no profile, or one of another format.
    """
    path = Path(folder) / PROFILE_FILE
    try:
        return BundleProfile.model_validate(read_json(path))
    except FileNotFoundError:
        why = "has no profile (an older version wrote it)"
    except (OSError, ValueError) as error:
        why = f"has a {PROFILE_FILE} that cannot be read ({reason(error)})"
    raise BundleError(f"bundle {folder} {why}: package the model again")


def check_profile(profile: BundleProfile, encoder: Encoder) -> None:
    """Check that a profile describes the fields and bins of an encoder.

    Raises:
        ValueError: it does not.
    """
    if [f.name for f in profile.fields] != [f.name for f in encoder.fields]:
        raise ValueError("it describes other fields than the encoder")
    for field_profile, f in zip(profile.fields, encoder.fields, strict=True):
        size = num_bins(encoder, f, np.asarray(field_profile.norm_edges))
        if len(field_profile.train.counts) != size or len(field_profile.valid.counts) != size:
            raise ValueError(f"field {f.name!r} has other bins than the encoder")
        if field_profile.support is not None and len(field_profile.support.counts) != COUNT_BINS:
            raise ValueError(f"the support of field {f.name!r} has {len(field_profile.support.counts)} bins")
    for score in profile.scores:
        if len(score.valid.counts) != len(score.edges) + 1:
            raise ValueError(f"{score.name!r} has {len(score.valid.counts)} bins and {len(score.edges)} edges")
    for name, edges in [(f.name, f.norm_edges) for f in profile.fields] + [(s.name, s.edges) for s in profile.scores]:
        if any(high <= low for low, high in pairwise(edges)):
            raise ValueError(f"the edges of {name!r} do not rise")


def support_bins(engine: Engine, encoder: Encoder, rows: EncodedRows) -> dict[str, np.ndarray]:
    """Bin [R] of every row by training count of its value, for every unprotected field."""
    reliability = engine.reliability
    counts = count_bins(reliability.counts_of(rows.ids))
    return {encoder.columns[c].name: counts[:, c] for c in reliability.maskable_fields.tolist()}


def _score(name: ScoreName, values: np.ndarray, groups: np.ndarray) -> ScoreProfile:
    edges = np.array([0.5]) if name == SECOND_OPINION else _edges(values, SCORE_BINS)
    in_quantiles = SampleProfile.of(quantile_bins(values, edges), groups, len(edges) + 1)
    return ScoreProfile(name=name, edges=tuple(edges.tolist()), valid=in_quantiles, mean=_short(float(values.mean())))


def _subsample(rows: EncodedRows, limit: int) -> tuple[EncodedRows, np.ndarray]:
    """At most ``limit`` rows, and their positions."""
    positions = np.arange(len(rows))
    if len(rows) > limit:
        positions = np.linspace(0, len(rows) - 1, limit).astype(np.int64)
    return rows.take(positions), positions


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    return np.unique([_short(edge) for edge in quantile_edges(values, bins)])


def _short(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
