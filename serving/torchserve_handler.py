"""TorchServe's side of the :class:`serving.service.Service`: a batch of HTTP requests in, one JSON body each out.

No envelope: TorchServe's own handle the first request of a batch only. A request that cannot be answered gets its own
status and error body and does not touch the others.
"""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Any

from serving import logs
from serving.config import load_config
from serving.metrics import serve_metrics
from serving.open_service import open_service
from serving.service import Service

logger = logging.getLogger(__name__)


class CTRHandler:
    """What TorchServe loads. One instance per worker process."""

    def __init__(self) -> None:
        self._service: Service | None = None

    def initialize(self, context: Any) -> None:
        """Load the bundle inside the archive and the feature store of this machine, and score once."""
        logs.configure()
        folder = Path(context.system_properties["model_dir"]) / "bundle"
        store = (context.model_yaml_config or {}).get("featureStore")
        try:
            config = load_config()
            self._service = open_service(folder, config, model_name=context.model_name, feature_store=store)
        except Exception as error:
            # Whoever started the server looks for this line in its log and shows the sentence to the user.
            logger.error("cannot load: %s", " ".join(str(error).split()))
            raise
        # What was loaded stays: a collection that walks through vocabularies and snapshots would hold a request up.
        gc.collect()
        gc.freeze()
        if config.metrics_port:
            serve_metrics(config.metrics_host, config.metrics_port)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer every request of a TorchServe batch, in order."""
        assert self._service is not None, "TorchServe calls initialize first"
        service = self._service
        headers = [{k.lower(): v for k, v in context.get_all_request_header(i).items()} for i in range(len(data))]
        arrivals = [service.arrival(found) for found in headers]
        bodies = []
        for index, (element, found, arrival) in enumerate(zip(data, headers, arrivals, strict=True)):
            reply = service.answer(element.get("body", element.get("data")), found, arrival)
            if reply.status != 200:
                context.set_response_status(reply.status, reply.phrase, idx=index)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
            bodies.append(reply.body)
        return bodies
