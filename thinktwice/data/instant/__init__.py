"""Instant statistics: counters of users and items up to the instant of an impression, the same in training and in serving.

:mod:`~thinktwice.data.instant.definition` defines them, :mod:`~thinktwice.data.instant.log_counters` computes them for a
whole log, :mod:`~thinktwice.data.instant.state` updates and reads them outcome by outcome.
"""
