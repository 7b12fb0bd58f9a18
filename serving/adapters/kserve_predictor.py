"""KServe adapter of the :class:`serving.service.Service`: a ``kserve.Model`` that needs neither TorchServe nor Java.

It has the same paths, bodies and statuses as the TorchServe handler, because bodies reach the service unchanged
(:mod:`serving.adapters.kserve_server`). Scoring runs in threads: the event loop stays free, so the server is live while it predicts.

    python -m serving.adapters.kserve_predictor --bundle DIR [--feature-store DIR] [--port 8080] [--host 127.0.0.1]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving.adapters.kserve_server import Server, kserve
from serving.admission import RESPONSE_LATENCY_S, too_late
from serving.config import FEATURE_STORE, load_config
from serving.exits import leave_after
from serving.local.processes import PROBE
from serving.open_service import open_service
from serving.service import HTTPResponse, Service
from serving.telemetry import logs
from thinktwice.errors import OverloadedError, RequestError, ServerError, ThinktwiceError, reason
from thinktwice.release.champion import MODEL_NAME
from thinktwice.release.release import stage
from thinktwice.release.signing import trusted_keys

GRACE = 30  # seconds for requests in progress after SIGTERM

logger = logging.getLogger("serving.adapters.kserve_predictor")  # __name__ is __main__ when run as a module


class CTRModel(kserve.Model):
    """Answers raw bodies with one service."""

    def __init__(self, name: str, service: Service) -> None:
        super().__init__(name)
        self.service = service
        self._threads = ThreadPoolExecutor(service.config.workers, thread_name_prefix="score")

    def load(self) -> bool:
        """Score one request. The model is ready if that succeeded."""
        self.ready = self.service.answer(dict(PROBE), {}).status == 200
        return bool(self.ready)

    async def predict(self, payload: bytes, headers: dict[str, str] | None = None, *_: Any) -> HTTPResponse:
        """Answer a v1 or v2 body. The request waits in the queue of the service until its deadline, and is refused if the queue is
        full."""
        headers = headers or {}
        service = self.service
        arrival = service.arrival(headers)
        try:
            service.admission.enter()
        except OverloadedError as error:
            return service.refuse(error, headers, arrival)
        scoring = self._threads.submit(service.answer, payload, headers, arrival)
        expiry = asyncio.get_running_loop().call_later(
            max(arrival.deadline.left(arrival.at) - RESPONSE_LATENCY_S, 0.0), scoring.cancel
        )
        try:
            return await asyncio.wrap_future(scoring)
        except asyncio.CancelledError:
            if not scoring.cancelled():
                raise
            return service.refuse(too_late(0.0, 0.0), headers, arrival)  # it was still queued at its deadline
        finally:
            expiry.cancel()
            service.admission.leave()

    def refuse(self, error: RequestError, headers: dict[str, str]) -> HTTPResponse:
        """The response to a request that is not processed."""
        return self.service.refuse(error, headers, self.service.arrival(headers))


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; then finish requests in progress and exit."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.adapters.kserve_predictor", description="Serve a click model."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--bundle", type=Path, help="bundle folder")
    source.add_argument("--archive", type=Path, help="TorchServe archive (.mar) whose bundle is served, of a release")
    parser.add_argument("--feature-store", type=Path, help="default: THINKTWICE_FEATURE_STORE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model-name", default=MODEL_NAME)
    options = parser.parse_args(arguments)
    logs.configure(others=("kserve", "uvicorn", "asyncio"))
    # uvicorn drains on a signal and then raises it again for the previous handler: the code below must still clean up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="thinktwice-bundle-") as scratch:
        try:
            config = load_config()
            store = options.feature_store or os.environ.get(FEATURE_STORE)
            staged = stage(
                options.bundle or options.archive,
                Path(store) if store else None,
                Path(scratch) / MODEL_NAME,
                config.release,
                trusted_keys(),
            )
            service = open_service(
                staged.bundle,
                config,
                model_name=options.model_name,
                feature_store=staged.feature_store,
                checked=staged.checked,
            )
            model = CTRModel(options.model_name, service)
            if not model.load():
                raise ServerError("warm-up request failed, see the previous log line")
        except Exception as error:  # noqa: BLE001 - the parent process shows the message
            # The parent process looks for this line in the log and shows the message to the user.
            logger.error("cannot load: %s", _sentence(error))
            return 1
        # Exclude loaded objects from garbage collection: traversing vocabularies and snapshots would delay a request.
        gc.collect()
        gc.freeze()
        try:
            Server(model, service.openapi, service.config.max_body_bytes, options.host, options.port, GRACE).run()
        finally:
            service.close()
            gc.unfreeze()
    return 0


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ThinktwiceError) else f"{type(error).__name__}: {reason(error)}"


if __name__ == "__main__":
    leave_after(lambda: main(sys.argv[1:]))
