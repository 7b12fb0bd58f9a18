"""The step ``fit_test_time``: fit and choose the test-time engine."""

from components.evaluation.fit_test_time.component import fit_test_time

__all__ = ["fit_test_time"]
