"""KServe's side of the :class:`serving.service.Service`: a ``kserve.Model`` that needs no TorchServe and no Java.

Same paths, same bodies, same statuses as the TorchServe handler, because bodies reach the service as they came
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

GRACE = 30  # seconds that requests under way have after SIGTERM

logger = logging.getLogger("serving.adapters.kserve_predictor")  # __name__ is __main__ where it counts


class CTRModel(kserve.Model):
    """Answers raw bodies with one service."""

    def __init__(self, name: str, service: Service) -> None:
        super().__init__(name)
        self.service = service
        self._threads = ThreadPoolExecutor(service.config.workers, thread_name_prefix="score")

    def load(self) -> bool:
        """Score once; ready means that it worked."""
        self.ready = self.service.answer(dict(PROBE), {}).status == 200
        return bool(self.ready)

    async def predict(self, payload: bytes, headers: dict[str, str] | None = None, *_: Any) -> HTTPResponse:
        """Answer a body of v1 or v2. Waits in the queue of the service as long as its deadline allows, and is refused where that is
        full."""
        headers = headers or {}
        service = self.service
        arrival = service.arrival(headers)
        try:
            service.admission.enter()
        except OverloadedError as error:
            return service.refuse(error, headers, arrival)
        turn = self._threads.submit(service.answer, payload, headers, arrival)
        over = asyncio.get_running_loop().call_later(
            max(arrival.deadline.left(arrival.at) - RESPONSE_LATENCY_S, 0.0), turn.cancel
        )
        try:
            return await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancelled():
                raise
            return service.refuse(too_late(0.0, 0.0), headers, arrival)  # it still waited when its time was over
        finally:
            over.cancel()
            service.admission.leave()

    def refuse(self, error: RequestError, headers: dict[str, str]) -> HTTPResponse:
        """The answer to a request that is not read."""
        return self.service.refuse(error, headers, self.service.arrival(headers))


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; then answer what is under way and end."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.adapters.kserve_predictor", description="Serve a click model."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, help="bundle folder")
    what.add_argument("--archive", type=Path, help="TorchServe archive (.mar) whose bundle is served, of a release")
    parser.add_argument("--feature-store", type=Path, help="default: THINKTWICE_FEATURE_STORE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model-name", default=MODEL_NAME)
    chosen = parser.parse_args(arguments)
    logs.configure(others=("kserve", "uvicorn", "asyncio"))
    # uvicorn drains at a signal and then raises it once more, for whoever had it before: what is below must still clean up.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="thinktwice-bundle-") as scratch:
        try:
            config = load_config()
            store = chosen.feature_store or os.environ.get(FEATURE_STORE)
            staged = stage(
                chosen.bundle or chosen.archive,
                Path(store) if store else None,
                Path(scratch) / MODEL_NAME,
                config.release,
                trusted_keys(),
            )
            service = open_service(
                staged.bundle,
                config,
                model_name=chosen.model_name,
                feature_store=staged.feature_store,
                checked=staged.checked,
            )
            model = CTRModel(chosen.model_name, service)
            if not model.load():
                raise ServerError("warm-up request failed, see the previous log line")
        except Exception as error:  # noqa: BLE001 - the sentence is what its starter shows
            # Whoever started the server looks for this line in its log and shows the sentence to the user.
            logger.error("cannot load: %s", _sentence(error))
            return 1
        # What was loaded stays: a collection that walks through vocabularies and snapshots would hold a request up.
        gc.collect()
        gc.freeze()
        try:
            Server(model, service.openapi, service.config.max_body_bytes, chosen.host, chosen.port, GRACE).run()
        finally:
            service.close()
            gc.unfreeze()
    return 0


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ThinktwiceError) else f"{type(error).__name__}: {reason(error)}"


if __name__ == "__main__":
    leave_after(lambda: main(sys.argv[1:]))
