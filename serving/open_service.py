"""From a bundle folder to a :class:`serving.service.Service` that has scored once, as settings and environment say."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from serving.admission import Admission
from serving.config import FEATURE_STORE, ServingConfig
from serving.scorer import Answer, open_scorer
from serving.service import Service
from serving.telemetry.metrics import Metrics
from serving.telemetry.prediction_log import PredictionLog
from serving.telemetry.tracing import open_tracing
from thinktwice.release.bundle import Manifest, read_manifest


def open_service(
    bundle_dir: Path | str,
    config: ServingConfig,
    *,
    model_name: str,
    feature_store: Path | str | None = None,
    registry: CollectorRegistry = REGISTRY,
    checked: Manifest | None = None,
) -> Service:
    """Load, warm up and measure.

    Args:
        bundle_dir: the bundle.
        config: settings of the process.
        model_name: as it stands in the path.
        feature_store: folder; default the one that ``THINKTWICE_FEATURE_STORE`` names.
        registry: where the metrics are registered.
        checked: see :func:`thinktwice.release.bundle.load_bundle`.

    Raises:
        BundleError: the bundle is damaged. Its signature was checked before (:func:`thinktwice.release.release.stage`).
        FeatureStoreError: the bundle needs a feature store that is not there.
    """
    import torch

    torch.set_num_threads(config.threads)
    version = (checked or read_manifest(bundle_dir)).model_version
    tracing = open_tracing(version, config.arm)
    metrics = Metrics(config.arm, version, registry)
    scorer = open_scorer(
        bundle_dir,
        feature_store or os.environ.get(FEATURE_STORE),
        features=config.features,
        on_default=metrics.defaulted,
        tracing=tracing,
        checked=checked,
    )
    admission = Admission(workers=config.workers, queue=config.queue, shed=config.shed)
    log = None
    if config.prediction_log.folder:
        log = PredictionLog(scorer.bundle.schema, config.prediction_log, metrics.log_writable, Answer)
    service = Service(scorer, config, metrics, admission, tracing, model_name=model_name, log=log)
    service.warm_up()
    return service
