"""TorchServe adapter of the :class:`serving.service.Service`: loading in a worker, and a handler for TorchServe's own worker.

Our worker (:mod:`serving.adapters.torchserve_worker`) needs no handler. TorchServe's own worker, which a standard installation starts,
passes a batch of HTTP requests to the handler and gets one JSON body per request. No envelope is used: TorchServe's envelopes handle
only the first request of a batch. A request that fails gets its own status and error body and does not affect the others.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

from serving.config import load_config
from serving.open_service import open_service
from serving.service import Service
from serving.telemetry import logs
from serving.telemetry.metrics import serve_metrics
from thinktwice.release.release import open_staged
from thinktwice.release.signing import trusted_keys

logger = logging.getLogger(__name__)


def load(folder: Path | str, model: str) -> Service:
    """Load and warm up the service of a staged model (:func:`thinktwice.release.release.stage`) with the settings of this machine.

    Raises:
        Exception: the model cannot be loaded; the log has the reason.
    """
    try:
        config = load_config()
        staged = open_staged(Path(folder).resolve(), config.release, trusted_keys())
        service = open_service(staged.bundle, config, model_name=model, feature_store=staged.feature_store)
    except Exception as error:
        # The parent process looks for this line in the log and shows the message to the user.
        logger.error("cannot load: %s", " ".join(str(error).split()))
        raise
    # Exclude loaded objects from garbage collection: traversing vocabularies and snapshots would delay a request.
    gc.collect()
    gc.freeze()
    if config.metrics_port:
        serve_metrics(config.metrics_host, config.metrics_port)
    return service


class CTRHandler:
    """Handler for TorchServe's own worker. One instance per worker process."""

    def __init__(self) -> None:
        self._service: Service | None = None

    def initialize(self, context: Any) -> None:
        """Load and warm up the staged model (:func:`thinktwice.release.release.stage`)."""
        logs.configure()
        self._service = load(context.system_properties["model_dir"], context.model_name)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer every request of a TorchServe batch, in order."""
        assert self._service is not None, "TorchServe calls initialize first"
        service = self._service
        headers = [{k.lower(): v for k, v in context.get_all_request_header(i).items()} for i in range(len(data))]
        arrivals = [service.arrival(request_headers) for request_headers in headers]
        bodies = []
        for index, (element, request_headers, arrival) in enumerate(zip(data, headers, arrivals, strict=True)):
            reply = service.answer(element.get("body", element.get("data")), request_headers, arrival)
            if reply.status != 200:
                context.set_response_status(reply.status, reply.phrase, idx=index)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
            bodies.append(reply.body)
        return bodies
