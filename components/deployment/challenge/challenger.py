"""A challenger: the weights of a bundle with another test-time mode, also one that the acceptance test refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

from components.deployment.package.archive import pack_bundle
from thinktwice import recipes
from thinktwice.errors import PipelineError
from thinktwice.evaluate.compare import evaluate
from thinktwice.evaluate.package import write_bundle
from thinktwice.release.archive import ARCHIVE_FILE
from thinktwice.release.bundle import BundleIdentity, read_manifest
from thinktwice.release.challenger import Version, install_challenger
from thinktwice.selection.config import search
from thinktwice.selection.fit import fit_test_time


def make_challenger(
    state_dir: Path | str,
    *,
    mode: str,
    recipe: str,
    bundle_dir: Path | str,
    training_set_dir: Path | str,
    plain_dir: Path | str,
    pretrained_dir: Path | str,
    feature_store_dir: Path | str,
) -> Version:
    """Fit a mode on validation, evaluate it, and install the bundle as a challenger. The champion stays what it is.

    Args:
        bundle_dir: bundle of the same training run, whose identity the challenger takes over.

    Raises:
        PipelineError: the mode is unknown or off, or has no configuration for this log.
        BundleError: a part is missing or damaged.
    """
    if mode in ("off", "lean"):
        raise PipelineError(f"the challenger's mode cannot be {mode!r}: name the test-time mode to try")
    settings = search(mode, recipes.get(recipe).testtime).model_copy(update={"ship_unproven": True})
    manifest = read_manifest(bundle_dir)
    with tempfile.TemporaryDirectory(prefix="thinktwice-challenger-") as scratch:
        test_time, evaluation, bundle, archive = (
            Path(scratch) / name for name in ("test_time", "evaluation", "bundle", "archive")
        )
        fitted = fit_test_time(training_set_dir, plain_dir, pretrained_dir, test_time, settings)
        if fitted.config.mode == "off":
            raise PipelineError(f"the mode {mode!r} has no configuration for this log: {fitted.sentence}")
        evaluate(training_set_dir, plain_dir, pretrained_dir, test_time, evaluation)
        identity = BundleIdentity.model_validate(
            {name: getattr(manifest, name) for name in BundleIdentity.model_fields}
            | {"model_version": f"{manifest.model_version}-{mode}"}
        )
        write_bundle(
            bundle,
            training_set_dir=training_set_dir,
            model_dir=plain_dir if fitted.trunk == "plain" else pretrained_dir,
            test_time_dir=test_time,
            evaluation_dir=evaluation,
            identity=identity,
        )
        pack_bundle(bundle, archive)
        return install_challenger(
            state_dir,
            bundle_dir=bundle,
            archive=archive / ARCHIVE_FILE,
            feature_store_dir=feature_store_dir,
            mode=mode,
            accepted=fitted.report.accepted,
            why=fitted.sentence,
        )
