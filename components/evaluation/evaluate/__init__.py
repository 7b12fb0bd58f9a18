"""The step ``evaluate``: measure the candidate and write its bundle."""

from components.evaluation.evaluate.component import evaluate

__all__ = ["evaluate"]
