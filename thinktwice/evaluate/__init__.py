"""Evaluation: metrics, significance, slices, cost, and the report.

The command line imports this package at every start, so heavy modules are imported where they are used.
"""

STAGE = "evaluate"  # of the progress that is reported
