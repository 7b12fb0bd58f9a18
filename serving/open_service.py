"""Construction of a warmed-up :class:`serving.service.Service` from a bundle folder, the settings and the environment."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from serving.admission import Admission
from serving.config import FEATURE_STORE, ServingConfig
from serving.scorer import open_scorer
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
    """Load a bundle, warm up and measure the cost of requests.

    Args:
        bundle_dir: the bundle.
        config: settings of the process.
        model_name: the name of the model in the URL path.
        feature_store: folder; default: the value of ``THINKTWICE_FEATURE_STORE``.
        registry: where the metrics are registered.
        checked: see :func:`thinktwice.release.bundle.load_bundle`.

    Raises:
        BundleError: the bundle is damaged. Its signature was checked before (:func:`thinktwice.release.release.stage`).
        FeatureStoreError: the bundle needs a feature store that does not exist.
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
        log = PredictionLog(
            scorer.bundle.schema, config.prediction_log, metrics.log_writable, scorer.answer, scorer.counter_names
        )
    metrics.mode(scorer.bundle.engine.config.mode)
    service = Service(scorer, config, metrics, admission, tracing, model_name=model_name, log=log)
    service.warm_up()
    return service
