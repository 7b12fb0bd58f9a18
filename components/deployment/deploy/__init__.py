"""The deploy step."""

from components.deployment.deploy.component import deploy

__all__ = ["deploy"]
