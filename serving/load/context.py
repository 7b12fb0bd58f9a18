"""Contexts of generated requests with the value frequencies of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thinktwice.data.encoder import Encoder
from thinktwice.release.profile import read_profile
from thinktwice.release.profile_bins import KNOWN, MISSING, UNKNOWN, length_width, top_values
from thinktwice.schema import SCHEMA_FILE, ModelField, load_schema


def typical_contexts(bundle_dir: Path, *, count: int, seed: int) -> list[dict[str, Any]]:
    """Generate contexts [count] with the value frequencies in the profile of the bundle.

    A number is drawn from its bucket, because the profile stores only buckets of numbers; of lists it stores only their lengths, and
    their elements are equally frequent and have no weights. Fields are drawn independently. Missing
    values are as frequent as in training. The contexts are empty if the log has no context fields.

    Raises:
        BundleError: the bundle has no profile, or a damaged one.
    """
    schema, encoder = load_schema(bundle_dir / SCHEMA_FILE), Encoder.load(bundle_dir)
    fields = [f for f in schema.model_fields_in_order() if f.entity == "context" and f.origin == "attribute"]
    contexts: list[dict[str, Any]] = [{} for _ in range(count)]
    if not fields:
        return contexts
    profiles = {profile.name: profile for profile in read_profile(bundle_dir).fields}
    rng = np.random.default_rng(seed)
    for field in fields:
        counts = np.array(profiles[field.name].train.counts, np.float64)
        for context, position in zip(contexts, _spread(counts, count, rng), strict=True):
            value = _value(encoder, field, int(position), rng)
            if value is not None:
                context[field.name] = value
    return contexts


def _spread(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Bins [size] in random order. The count of each bin differs from its share by less than one."""
    share = np.cumsum(counts) / max(counts.sum(), 1.0)
    positions = np.searchsorted(share, (np.arange(size) + rng.random()) / size, side="right")
    return rng.permutation(np.minimum(positions, len(counts) - 1))


def _value(
    encoder: Encoder, field: ModelField, position: int, rng: np.random.Generator
) -> str | float | list[str] | None:
    """A value in a bin of :func:`thinktwice.release.profile_bins.row_bins`; None: missing."""
    if field.kind == "numeric":
        return _number(encoder.bounds[field.name], position)
    if field.kind == "sequence":
        return _list(encoder.values_of(field.of), field.length, position, rng)
    if position in (UNKNOWN, MISSING):
        return None
    most_frequent = top_values(encoder, field)
    if position < KNOWN + len(most_frequent):
        return encoder.value_of(field.name, most_frequent[position - KNOWN])
    remaining = encoder.values_of(field.name)[len(most_frequent) :]  # ordered by descending frequency
    return remaining[rng.integers(len(remaining))] if remaining else None


def _list(values: tuple[str, ...], most: int, position: int, rng: np.random.Generator) -> list[str] | None:
    """A list of known values whose number is in a bin of numbers."""
    if position == 0 or not values:
        return None
    width = length_width(most)
    number = min(most, 1 + width * (position - 1) + int(rng.integers(width)))
    return [values[i] for i in rng.integers(len(values), size=number)]


def _number(bounds: np.ndarray, bucket: int) -> float | None:
    """A number in a bucket: its lower bound; for the lowest bucket, slightly below its upper bound."""
    if bucket == 0:
        return None
    if len(bounds) == 0:
        return 0.0
    return float(bounds[bucket - 2]) if bucket > 1 else float(np.nextafter(bounds[0], -np.inf))
