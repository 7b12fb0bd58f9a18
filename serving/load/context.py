"""Contexts of made-up requests, as training saw them: every value of every context field as often as it came there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thinktwice.data.encoder import Encoder
from thinktwice.release.profile import read_profile
from thinktwice.release.profile_bins import KNOWN, MISSING, UNKNOWN, top_values
from thinktwice.schema import SCHEMA_FILE, ModelField, load_schema


def typical_contexts(bundle_dir: Path, *, count: int, seed: int) -> list[dict[str, Any]]:
    """Contexts [count] with the shares that the profile in the bundle has of the values of each field.

    A number is one of its bucket, because that is all that the profile knows of numbers. Fields are drawn apart from each
    other. A field that was missing in training is missing here as often. Empty contexts for a log without context fields.

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
    """Bins [size] in random order, each as often as its share asks for, to less than one."""
    share = np.cumsum(counts) / max(counts.sum(), 1.0)
    positions = np.searchsorted(share, (np.arange(size) + rng.random()) / size, side="right")
    return rng.permutation(np.minimum(positions, len(counts) - 1))


def _value(encoder: Encoder, field: ModelField, position: int, rng: np.random.Generator) -> str | float | None:
    """A value that falls into a bin of :func:`thinktwice.release.profile_bins.row_bins`; None: missing."""
    if field.kind == "numeric":
        return _number(encoder.bounds[field.name], position)
    if position in (UNKNOWN, MISSING):
        return None
    top = top_values(encoder, field)
    if position < KNOWN + len(top):
        return encoder.value_of(field.name, top[position - KNOWN])
    others = encoder.values_of(field.name)[len(top) :]  # the most frequent come first
    return others[rng.integers(len(others))] if others else None


def _number(bounds: np.ndarray, bucket: int) -> float | None:
    """A number of a bucket: its lower border, and for the lowest one a little below its upper border."""
    if bucket == 0:
        return None
    if len(bounds) == 0:
        return 0.0
    return float(bounds[bucket - 2]) if bucket > 1 else float(np.nextafter(bounds[0], -np.inf))
