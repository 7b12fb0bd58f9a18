"""The step that measures and packs what ships."""

from components.evaluation.evaluate.component import evaluate

__all__ = ["evaluate"]
