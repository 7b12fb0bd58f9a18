"""The pipeline step `fit_test_time`."""

from components.evaluation.fit_test_time.component import fit_test_time

__all__ = ["fit_test_time"]
