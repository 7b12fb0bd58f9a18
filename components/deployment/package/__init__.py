"""The package step."""

from components.deployment.package.component import package

__all__ = ["package"]
