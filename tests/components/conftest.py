"""Fixtures of the deployment steps."""

from tests.components.object_store import deployed, server, store
from tests.serving.small import small

__all__ = ["deployed", "server", "small", "store"]
