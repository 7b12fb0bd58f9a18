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
from thinktwice.release import open_staged
from thinktwice.signing import trusted_keys

logger = logging.getLogger(__name__)


class CTRHandler:
    """What TorchServe loads. One instance per worker process."""

    def __init__(self) -> None:
        self._service: Service | None = None

    def initialize(self, context: Any) -> None:
        """Load the model that was staged (:func:`thinktwice.release.stage`) and score once."""
        logs.configure()
        try:
            config = load_config()
            folder = Path(context.system_properties["model_dir"]).resolve()
            staged = open_staged(folder, config.release, trusted_keys())
            self._service = open_service(
                staged.bundle, config, model_name=context.model_name, feature_store=staged.feature_store
            )
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
        deadlines = [service.arrival(found) for found in headers]
        bodies = []
        for index, (element, found, deadline) in enumerate(zip(data, headers, deadlines, strict=True)):
            reply = service.answer(element.get("body", element.get("data")), found, deadline)
            if reply.status != 200:
                context.set_response_status(reply.status, reply.phrase, idx=index)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
            bodies.append(reply.body)
        return bodies
