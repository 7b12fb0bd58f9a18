"""Evaluation: metrics, significance, slices, cost, and the report.

The command line imports this package at every start, so that the heavy parts are imported where they are used.
"""
