"""The feedback service as an HTTP server process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from serving.adapters.bounded_http import bounded
from serving.feedback.http import application
from serving.feedback.online import OnlineStore
from serving.feedback.quarantine import Quarantine
from serving.feedback.rules import EventRules
from serving.feedback.service import Feedback, FeedbackConfig
from thinktwice.errors import ServerError

GRACE = 5  # seconds for requests in progress after SIGTERM


def serve(
    log: Path, store_dir: Path, config: FeedbackConfig, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Accept events until SIGINT or SIGTERM. All accepted events are durable, and are pushed for at most 10 s.

    Raises:
        ServerError: the address is in use, or another process uses the log.
        FeatureStoreError, DataError: see :class:`serving.feedback.service.Feedback`.
    """
    store = OnlineStore(store_dir)
    rules = EventRules(store.schema)
    listener = _listening(host, port)
    feedback = Feedback(log, store.schema, store, config)
    try:
        address = listener.getsockname()

        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                on_ready(f"http://{host}:{address[1]}/v1/events")

        settings = uvicorn.Config(
            application(feedback, rules, Quarantine(log)),
            http=bounded(),
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE,
        )
        Server(settings).run(sockets=[listener])
    finally:
        feedback.close()
        store.close()
        listener.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise ServerError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): choose another --port"
        ) from error
    return listener
