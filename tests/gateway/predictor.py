"""One arm as a process: the real service, server and prediction log over a small model, with faults on demand.

    python -m tests.gateway.predictor BUNDLE ARM PORT SERVED MODE LARGEST

``MODE`` is a file whose content, ok, slow, 500 or 503, says how features are read from now on; ``LARGEST`` is the size in bytes
beyond which no file can be written, as on a full disk (0: no limit).
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from serving.adapters.kserve_predictor import CTRModel
from serving.adapters.kserve_server import Server
from serving.admission import Admission
from serving.config import ServingConfig
from serving.features.lookup import Features
from serving.local.launcher import end_with_parent
from serving.scorer import Answer, Scorer
from serving.service import Service
from serving.telemetry.metrics import Metrics
from serving.telemetry.prediction_log import PredictionLog, PredictionLogConfig
from serving.telemetry.tracing import Tracing
from tests.serving.fakes import FakeReader
from thinktwice.errors import FeatureStoreError
from thinktwice.release.bundle import load_bundle

SLOW = 4.0  # seconds: longer than the gateway waits for an attempt


class FaultyReader(FakeReader):
    """Fails as its file says."""

    def __init__(self, mode: Path) -> None:
        super().__init__()
        self._mode = mode

    def read(self, *arguments: Any, **more: Any) -> Features:
        mode = self._mode.read_text()
        if mode == "slow":
            time.sleep(SLOW)
        if mode == "500":
            raise RuntimeError("a fault of the code")
        if mode == "503":
            raise FeatureStoreError("the store is down")
        return super().read(*arguments, **more)


def main(bundle: str, arm: str, port: str, served: str, mode: str, largest: str) -> None:
    end_with_parent()
    if int(largest):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), resource.RLIM_INFINITY))
    settings = PredictionLogConfig(folder=served, part_seconds=0.5)
    config = ServingConfig(
        arm=arm, workers=16, queue=1000, shed=False, deadline_ms=60_000, access_log=False, prediction_log=settings
    )
    scorer = Scorer(load_bundle(bundle), FaultyReader(Path(mode)), Tracing())
    metrics = Metrics(arm, "v", CollectorRegistry())
    admission = Admission(workers=config.workers, queue=config.queue, shed=False)
    log = PredictionLog(scorer.bundle.schema, settings, metrics.log_writable, Answer)
    service = Service(scorer, config, metrics, admission, Tracing(), model_name="ctr", log=log)
    service.warm_up()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    model = CTRModel("ctr", service)
    model.ready = True
    try:
        Server(model, service.openapi, config.max_body_bytes, "127.0.0.1", int(port), 10).run()
    finally:
        service.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
