"""HTTP server on the KServe SDK: selects its routes and its address, and keeps it from reading our command line.

The SDK's own predict routes decode v1 and v2 themselves and answer errors in their own formats, with the text of exceptions; others
unload models for any caller. So the predict routes and the error format are ours, and of the SDK's routes only those for health,
readiness and metrics are kept. The hooks are private to the SDK: if a release no longer calls them, the contract tests find no predict
route.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from serving.protocol.errors import JSON, error_body
from serving.service import HTTPResponse, too_large
from thinktwice import __version__

_arguments = sys.argv[1:]
sys.argv[1:] = []  # the SDK parses the command line on import
import kserve  # noqa: E402
from kserve.protocol.dataplane import DataPlane  # noqa: E402
from kserve.protocol.model_repository_extension import ModelRepositoryExtension  # noqa: E402
from kserve.protocol.rest.server import RESTServer, metrics_handler  # noqa: E402
from kserve.protocol.rest.v1_endpoints import V1Endpoints  # noqa: E402
from kserve.protocol.rest.v2_endpoints import V2Endpoints  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.requests import ClientDisconnect, Request  # noqa: E402
from starlette.responses import Response  # noqa: E402

from serving.adapters.bounded_http import bounded  # noqa: E402

sys.argv[1:] = _arguments

__all__ = ["Server", "kserve"]


class Server(RESTServer):
    """Serves one model.

    Args:
        model: answers readiness, and predict requests by ``model.predict(body, headers)``.
        openapi: the document that ``/openapi.json`` answers.
        max_body_bytes: maximum size of a body; reading stops once a body exceeds it.
        host, port: address to listen on.
        grace: seconds for requests in progress after SIGTERM.
    """

    def __init__(
        self, model: kserve.Model, openapi: dict[str, Any], max_body_bytes: int, host: str, port: int, grace: int
    ) -> None:
        repository = kserve.model_repository.ModelRepository()
        repository.update(model)
        super().__init__(
            "kserve.model_server:app",
            DataPlane(repository),
            ModelRepositoryExtension(repository),
            port,
            grace_period=grace,
        )
        self.config.host = host
        self.config.http, self.config.ws = bounded(), "none"
        self.config.access_log = self.config.server_header = False
        self._model, self._openapi, self._limit = model, openapi, max_body_bytes

    def _add_middlewares(self, app: Any) -> None:
        """Add none: the SDK's would log two lines per request; our metrics have the stages."""

    def _add_exception_handlers(self, app: Any) -> None:
        """Answer errors of the other routes in the common error format."""

        async def refused(_: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            field = {404: "path", 405: "method"}.get(error.status_code, "")
            return _error(error.status_code, error.detail, field, error.headers)

        async def failed(_: Request, error: Exception) -> Response:
            return _error(500, "the request failed")

        app.add_exception_handler(HTTPException, refused)
        app.add_exception_handler(Exception, failed)

    def _register_endpoints(self, app: Any) -> None:
        app.openapi = lambda: self._openapi
        app.router.redirect_slashes = False  # it would redirect callers to the host in their request
        v1, v2 = (kind(self.dataplane, self.model_repository_extension) for kind in (V1Endpoints, V2Endpoints))
        name = self._model.name
        for path in (f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"):
            app.add_route(path, self._predict, methods=["POST"])
        for path, answer in (
            ("/", self.dataplane.live),
            ("/metrics", metrics_handler),
            ("/v1/models", v1.models),
            (f"/v1/models/{name}", partial(v1.model_ready, name)),
            ("/v2", self._metadata),
            ("/v2/health/live", v2.live),
            ("/v2/health/ready", v2.ready),
            (f"/v2/models/{name}", partial(v2.model_metadata, name, None)),
            (f"/v2/models/{name}/ready", partial(v2.model_ready, name, None)),
        ):
            app.add_api_route(path, answer, methods=["GET"], response_model=None)

    async def _metadata(self) -> dict[str, Any]:
        """Server metadata of the Open Inference Protocol. The SDK's version reports its own release and an extension that we do not have."""
        return {"name": "thinktwice", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def _predict(self, request: Request) -> Response:
        # The last value of a repeated header counts, as with TorchServe.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        if _announces_more(headers, self._limit):
            return _sent(self._model.refuse(too_large(self._limit), headers))
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > self._limit:  # the service refuses it; further data is not kept
                    break
        except ClientDisconnect:
            return Response(status_code=400)  # the client has disconnected
        return _sent(await self._model.predict(bytes(body), headers))


def _sent(reply: HTTPResponse) -> Response:
    return Response(reply.body, reply.status, reply.headers)


def _announces_more(headers: dict[str, str], limit: int) -> bool:
    length = headers.get("content-length", "")
    return length.isascii() and length.isdigit() and int(length) > limit


def _error(status: int, text: str, field: str = "", headers: Mapping[str, str] | None = None) -> Response:
    return Response(error_body(text, field), status, headers, media_type=JSON)
