"""KServe's side of the :class:`serving.service.Service`: a ``kserve.Model`` that needs no TorchServe and no Java.

Same paths, same bodies, same statuses as the TorchServe handler. Bodies reach the service as they came: the SDK's own routes
decode v1 and v2 by themselves, answer errors in forms of their own and tell callers the text of exceptions, so the predict
routes are our own, and there are none that load or unload models. Readiness, health and metrics are the SDK's. Scoring runs
in threads: the event loop stays free, so the server is live while it predicts.

    python -m serving.kserve_predictor --bundle DIR [--feature-store DIR] [--port 8080] [--host 127.0.0.1]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving import logs
from serving.config import load_config
from serving.open_service import open_service
from serving.service import Reply, Service
from thinktwice.champion import MODEL_NAME
from thinktwice.errors import OverloadedError, ThinktwiceError

_arguments = sys.argv[1:]
sys.argv[1:] = []  # the SDK reads the command line when it is imported, and would take ours for its own
import kserve  # noqa: E402
from kserve.protocol.rest.server import RESTServer, metrics_handler  # noqa: E402
from kserve.protocol.rest.v1_endpoints import V1Endpoints  # noqa: E402
from kserve.protocol.rest.v2_endpoints import V2Endpoints  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402

sys.argv[1:] = _arguments

GRACE = 30  # seconds that requests under way have after SIGTERM

logger = logging.getLogger("serving.kserve_predictor")  # __name__ is __main__ where it counts


class CTRModel(kserve.Model):
    """Answers raw bodies with one service."""

    def __init__(self, name: str, service: Service) -> None:
        super().__init__(name)
        self.service = service
        self._threads = ThreadPoolExecutor(service.config.workers, thread_name_prefix="score")

    def load(self) -> bool:
        """Score once; ready means that it worked."""
        self.ready = self.service.answer(b'{"instances": [{"rows": [{}]}]}', {}).status == 200
        return bool(self.ready)

    async def predict(self, payload: bytes, headers: dict[str, str] | None = None, *_: Any) -> Reply:
        """Answer a body of v1 or v2. Waits in the queue of the service, and is refused where that is full."""
        headers = headers or {}
        deadline = self.service.arrival(headers)
        try:
            self.service.admission.enter()
        except OverloadedError as error:
            return self.service.refuse(error, headers, deadline)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self.service.answer, payload, headers, deadline)
        finally:
            self.service.admission.leave()


class Server(RESTServer):
    """The SDK's server with our predict routes, on an address of choice."""

    def __init__(self, model: CTRModel, host: str, port: int) -> None:
        repository = kserve.model_repository.ModelRepository()
        repository.update(model)
        data_plane = kserve.protocol.dataplane.DataPlane(repository)
        extension = kserve.protocol.model_repository_extension.ModelRepositoryExtension(repository)
        super().__init__("kserve.model_server:app", data_plane, extension, port, grace_period=GRACE)
        self.config.host = host
        self.config.access_log = False
        self._model = model

    def _add_middlewares(self, app: Any) -> None:
        """None: the SDK's would log two lines a request; stages are in our metrics."""

    def _register_endpoints(self, app: Any) -> None:
        app.openapi = lambda: self._model.service.openapi  # what /openapi.json answers
        v1, v2 = (kind(self.dataplane, self.model_repository_extension) for kind in (V1Endpoints, V2Endpoints))
        for path in ("/v1/models/{model_name}:predict", "/v2/models/{model_name}/infer"):
            app.add_route(path, self._predict, methods=["POST"])
        for path, answer in (
            ("/", self.dataplane.live),
            ("/metrics", metrics_handler),
            ("/v1/models", v1.models),
            ("/v1/models/{model_name}", v1.model_ready),
            ("/v2", v2.metadata),
            ("/v2/health/live", v2.live),
            ("/v2/health/ready", v2.ready),
            ("/v2/models/{model_name}", v2.model_metadata),
            ("/v2/models/{model_name}/ready", v2.model_ready),
        ):
            app.add_api_route(path, answer, methods=["GET"], response_model=None)

    async def _predict(self, request: Request) -> Response:
        if (name := request.path_params["model_name"]) != self._model.name:
            return JSONResponse({"error": f"there is no model {name[:64]!r}, only {self._model.name!r}"}, 404)
        body, limit = bytearray(), self._model.service.config.max_body_bytes
        async for part in request.stream():
            body += part
            if len(body) > limit:  # the service says so; nothing beyond is kept
                break
        reply = await self._model.predict(bytes(body), dict(request.headers))
        return Response(reply.body, reply.status, reply.headers)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; then answer what is under way and end."""
    parser = argparse.ArgumentParser(prog="python -m serving.kserve_predictor", description="Serve a click model.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, help="bundle folder")
    what.add_argument("--archive", type=Path, help="TorchServe archive (.mar) whose bundle is served")
    parser.add_argument("--feature-store", type=Path, help="default: THINKTWICE_FEATURE_STORE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--model-name", default=MODEL_NAME)
    chosen = parser.parse_args(arguments)
    logs.configure()
    with tempfile.TemporaryDirectory(prefix="thinktwice-bundle-") as scratch:
        try:
            bundle = chosen.bundle
            if chosen.archive is not None:
                from serving.archive import extract_bundle

                bundle = extract_bundle(chosen.archive, Path(scratch))
            service = open_service(
                bundle, load_config(), model_name=chosen.model_name, feature_store=chosen.feature_store
            )
        except ThinktwiceError as error:
            # Whoever started the server looks for this line in its log and shows the sentence to the user.
            logger.error("cannot load: %s", " ".join(str(error).split()))
            return 1
        model = CTRModel(chosen.model_name, service)
        if not model.load():
            logger.error("cannot load: the model does not score a row: see above")
            return 1
        # What was loaded stays: a collection that walks through vocabularies and snapshots would hold a request up.
        gc.collect()
        gc.freeze()
        Server(model, chosen.host, chosen.port).run()
        service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
