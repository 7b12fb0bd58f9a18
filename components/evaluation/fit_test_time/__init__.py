"""The step that decides what ships."""

from components.evaluation.fit_test_time.component import fit_test_time

__all__ = ["fit_test_time"]
