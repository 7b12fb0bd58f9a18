"""Drift of a prediction log against the bundle that served it."""

from __future__ import annotations

from pathlib import Path

from thinktwice.bundle import PROFILE_FILE, load_bundle
from thinktwice.errors import BundleError, DataError
from thinktwice.files import read_json
from thinktwice.monitor.drift import DriftReport, measure_drift
from thinktwice.monitor.profile import Profile
from thinktwice.monitor.served import read_served
from thinktwice.testtime.support import missing_support


def drift_of_log(log: Path | str, bundle_dir: Path | str, most_rows: int = 100_000) -> DriftReport:
    """Compare the rows that a bundle served with its profile.

    Raises:
        DataError: there is no log, or the bundle served none of it.
        BundleError: the bundle is damaged, or has no profile.
    """
    bundle = load_bundle(bundle_dir)
    if PROFILE_FILE not in bundle.manifest.files:
        raise BundleError(
            f"bundle {bundle_dir} of {bundle.manifest.model_version} has no profile (an older version wrote it): package it again"
        )
    profile = Profile.model_validate(read_json(bundle.folder / PROFILE_FILE))
    served = read_served(log, most_rows)
    mine = served.filter(served["log_bundle_hash"] == bundle.hash)
    if mine.height == 0:
        others = ", ".join(sorted(served["log_model_version"].unique().to_list())[:5])
        raise DataError(
            f"the prediction log {log} holds no row of {bundle.manifest.model_version} (it has: {others}): give that bundle"
        )
    rows = bundle.encoder.encode_table(mine.to_arrow())
    engine = bundle.engine
    support = missing_support(
        engine.reliability.of(rows.batch(slice(0, len(rows))).ids.numpy()),
        engine.reliability.open_fields,
        engine.config.importance,
    )
    return measure_drift(mine, profile, bundle.encoder, support)
