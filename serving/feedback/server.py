"""The feedback service as an HTTP server process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from serving.adapters.bounded_http import bounded
from serving.feedback.config import FeedbackConfig
from serving.feedback.http import application
from serving.feedback.quarantine import Quarantine
from serving.feedback.rules import EventRules
from serving.feedback.service import Feedback
from serving.feedback.target import ChampionFollower, Target, open_target
from thinktwice.errors import ServerError

GRACE = 5  # seconds for requests in progress after SIGTERM


def serve(
    log: Path,
    folder: Path,
    config: FeedbackConfig,
    host: str,
    port: int,
    on_ready: Callable[[str], None],
    champion: Callable[[], Path] | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Accept events until SIGINT or SIGTERM. All accepted events are durable, and are pushed for at most 10 s.

    Args:
        folder: of the feature store; to record only, one with the schema of the log.
        champion: returns the folder of the present champion, which is followed; None: ``folder`` stays.
        say: takes a sentence about each change of the champion.

    Raises:
        ServerError: the address is in use, or another process uses the log.
        FeatureStoreError, DataError: see :class:`serving.feedback.service.Feedback`.
    """
    target = open_target(folder, config)
    try:
        rules = EventRules(target.schema, config)
        listener = _listening(host, port)
    except BaseException:
        target.close()
        raise
    try:
        feedback = Feedback(log, target.schema, target.store, config)
    except BaseException:
        target.close()
        listener.close()
        raise
    follower: ChampionFollower | None = None
    try:
        if champion is not None:

            def use(followed: Target) -> None:
                rules.use(followed.schema)
                feedback.follower.use(followed)

            follower = ChampionFollower(champion, folder, target.schema, config, use, say)
        address = listener.getsockname()

        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                on_ready(f"http://{host}:{address[1]}/v1/events")

        settings = uvicorn.Config(
            application(feedback, rules, Quarantine(log), lambda: "" if follower is None else follower.refused),
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
        if follower is not None:
            follower.close()
        feedback.close()
        target.close()
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
